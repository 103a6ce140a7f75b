"""ComfyUI's editor in Chromium: on a real server where this machine has one, on recorded answers everywhere."""

from __future__ import annotations

import os

import pytest

from ..comfyui import host
from . import real
from .editor import CANVASES, CHROMIUM_OPTIONS, Editor, chromium_of


def pytest_collection_modifyitems(config, items):
    """Each canvas in one of the two editors, half the time; DIFFUSION_BLEND_EDITORS=all: both in both."""
    if os.environ.get("DIFFUSION_BLEND_EDITORS") == "all":
        return
    crossed = [item for item in items if item.name.endswith(("[own-nodes2]", "[newest-classic]"))]
    config.hook.pytest_deselected(items=crossed)
    items[:] = [item for item in items if item not in crossed]


@pytest.fixture(scope="session")
def recorded():
    """The address of the editor on recorded answers."""
    for package in ("comfyui_frontend_package", "aiohttp"):
        pytest.importorskip(package, reason=f"browser tests SKIPPED: no {package} (pip install -e '.[dev]')")
    from . import replay

    with replay.served() as address:
        yield address


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """serve(editor, models=True): a context with a real server, under its own editor or the newest."""

    def start(editor: str, models: bool = True):
        root = real.workspace()
        if root is None:
            pytest.skip(f"no real server: {host.HINT}")
        options = ("--front-end-root", str(_newest_editor())) if editor == "newest" else ()
        return real.served(root, tmp_path_factory.mktemp("comfyui") / "base", options, models)

    return start


def _newest_editor():
    pytest.importorskip("aiohttp", reason="browser tests SKIPPED: no aiohttp (pip install -e '.[dev]')")
    from . import replay

    return replay.editor_files() or pytest.skip("no comfyui_frontend_package (pip install -e '.[dev]')")


@pytest.fixture(scope="session")
def real_server(serve):
    """A real server with the editor that it asks for; tests that need one are skipped without."""
    with serve("own") as server:
        yield server


@pytest.fixture(scope="session")
def newest_server(serve):
    """A real server with the newest editor."""
    with serve("newest") as server:
        yield server


@pytest.fixture(params=["real_server", "newest_server"], ids=["own", "newest"])
def server(request):
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def address(request):
    """The editor on a real server, or else on recorded answers."""
    if real.workspace() is None:
        return request.getfixturevalue("recorded")
    return f"http://127.0.0.1:{request.getfixturevalue('real_server').port}"


@pytest.fixture(scope="session")
def browser():
    """Chromium."""
    missing = "browser tests SKIPPED: no playwright (pip install -e '.[dev]')"
    sync_api = pytest.importorskip("playwright.sync_api", reason=missing)
    with sync_api.sync_playwright() as playwright:
        path = chromium_of(playwright)
        if path is None:
            pytest.skip("browser tests SKIPPED: no Chromium; install one, or set CHROMIUM to it")
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(params=CANVASES)
def canvas(request):
    """One of the editor's two ways to draw nodes."""
    return request.param


@pytest.fixture
def editor(browser):
    """editor(address, canvas, **settings): an Editor, closed after the test."""
    contexts = []

    def start(address: str, canvas: str = "classic", before: str = "0", **settings) -> Editor:
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1000}))
        return Editor(contexts[-1].new_page(), address, CANVASES[canvas] | settings, before)

    yield start
    for context in contexts:
        context.close()


@pytest.fixture
def opened(editor, address, canvas):
    """opened(graph, node=TYPE): the editor with an example graph, that node in its middle. On both canvases."""

    def open_graph(graph: str | dict, node: str = "DiffusionBlendBlendWeights", before: str = "0") -> Editor:
        made = editor(address, canvas, before)
        made.load(graph)
        made.centre(node)
        return made

    return open_graph


@pytest.fixture
def visit(editor, server, canvas):
    """visit(graph, node=TYPE): a graph on a real server, in both editors on both canvases."""

    def open_graph(graph: str | dict, node: str | None = None, **settings) -> Editor:
        made = editor(f"http://127.0.0.1:{server.port}", canvas, **settings)
        made.load(graph)
        if node:
            made.centre(node)
        return made

    return open_graph
