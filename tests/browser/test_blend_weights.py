"""The controls on Blend Weights, in ComfyUI's real editor in Chromium, on both of its canvases.

Not among what `make test` needs: `pip install playwright`, and a Chromium on the path or at CHROMIUM.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests SKIPPED: no playwright (pip install it)")
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "comfyui"))
import host  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
ROOT = next((root for root in host.workspaces() if host.python_of(root)), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests SKIPPED: no Chromium; set CHROMIUM"),
    pytest.mark.skipif(ROOT is None, reason=f"browser tests SKIPPED: {host.HINT}"),
]

PATIENCE = 180  # seconds
NODE = "app.graph.nodes.find((node) => node.type === 'DiffusionBlendBlendWeights')"
SAVED = "app.graph.serialize().nodes.find((node) => node.type === 'DiffusionBlendBlendWeights').widgets_values"
TEXT = f"{NODE}.widgets.find(({{ name }}) => name === 'weights').value"
CONTROLS = ".diffusion-blend-weights"
REFUSED = """() => {
    const prototype = LiteGraph.LGraphNode.prototype, own = prototype.addDOMWidget;
    prototype.addDOMWidget = function (name, ...rest) {
        if (name === "weights_controls") throw new TypeError("addDOMWidget is gone");
        return own.call(this, name, ...rest);
    };
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server with the pack and no models: the editor opens a graph without them."""
    folder = tmp_path_factory.mktemp("editor")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "diffusion-blend").symlink_to(REPOSITORY, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [host.python_of(ROOT), "main.py", "--cpu", "--base-directory", folder, "--disable-api-nodes"]
    command += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}", "--disable-auto-launch", "--port", port]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "diffusion-blend"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None, (folder / "log").read_text()[-4000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes2"])
def opened(request, address, browser):
    """opened(graph, before=script): the editor's page with an example graph, the node in its middle."""
    contexts = []

    def open_graph(graph: str, before: str = "0"):
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.messages = []
        page.on("console", lambda message: page.messages.append(message.text))
        page.goto(address)
        page.wait_for_function(
            "!!window.LiteGraph?.registered_node_types?.DiffusionBlendKSampler && !!window.app?.graph"
        )
        page.wait_for_timeout(2000)
        page.keyboard.press("Escape")  # the templates that greet a new user
        page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
        page.evaluate(before)
        page.evaluate("(graph) => app.loadGraphData(graph)", content_of(graph))
        page.wait_for_timeout(1000)
        page.keyboard.press("Escape")  # the list of missing models
        page.evaluate(f"""() => {{
            const [x, y] = {NODE}.pos;
            app.canvas.ds.scale = 1.2;
            app.canvas.ds.offset[0] = 400 - x;
            app.canvas.ds.offset[1] = 150 - y;
            app.canvas.setDirty(true, true);
        }}""")
        page.wait_for_timeout(1000)
        return page

    yield open_graph
    for context in contexts:
        context.close()


def content_of(graph: str) -> dict:
    """An example graph's file, which was saved without the controls."""
    return json.loads((REPOSITORY / "example_workflows" / f"{graph}.json").read_text(encoding="utf8"))


def saved_values(graph: str) -> list:
    """What the file holds of Blend Weights."""
    return next(
        node["widgets_values"] for node in content_of(graph)["nodes"] if node["type"] == "DiffusionBlendBlendWeights"
    )


def middle(locator) -> tuple[float, float, float]:
    """x and y of an element's middle, and its width."""
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]


def drag(page, *points):
    """Press at the first point, go by the others, let go."""
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    page.wait_for_timeout(600)


def numbers(page) -> list[float]:
    """The numbers in the text."""
    return [float(word) for word in page.evaluate(TEXT).split(", ")]


def test_two_rewards_have_a_slider_that_undo_and_typing_move(opened):
    page = opened("two_rewards")
    assert page.evaluate(SAVED) == saved_values("two_rewards")
    assert page.locator(f"{CONTROLS} span").all_inner_texts() == ["faithful 0.60", "beautiful 0.40"]
    slider, place = page.locator(f"{CONTROLS} input"), page.evaluate(f"[...{NODE}.pos]")
    x, y, width = middle(slider)
    drag(page, (x - width * 0.1, y), (x + width * 0.3, y))
    first, second = numbers(page)
    assert first + second == pytest.approx(1) and second > 0.7
    assert page.evaluate(SAVED)[1:] == saved_values("two_rewards")[1:]
    assert page.evaluate(f"[...{NODE}.pos]") == place

    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(1500)
    assert page.evaluate(TEXT) == "0.6, 0.4"
    assert float(slider.input_value()) == pytest.approx(0.4)
    page.evaluate(f"() => {{ {TEXT} = '25%; 75%'; }}")
    page.wait_for_timeout(500)
    assert float(slider.input_value()) == pytest.approx(0.75)


def test_three_rewards_have_a_point_in_a_triangle(opened):
    page = opened("three_rewards_one_per_step")
    assert page.evaluate(SAVED) == saved_values("three_rewards_one_per_step")
    labels = page.locator(f"{CONTROLS} svg > text").all_text_contents()  # a title follows in each
    assert labels == ["faithful 0.50faithful", "beautiful 0.30beautiful", "calm 0.20calm"]
    x, y, _ = middle(page.locator(f"{CONTROLS} circle"))
    drag(page, (x, y), (x + 10, y + 10))
    assert sum(numbers(page)) == pytest.approx(1)
    corner_x, _, _ = middle(page.locator(f"{CONTROLS} polygon"))
    drag(page, (x + 10, y + 10), (corner_x, y - 400))
    assert numbers(page)[0] == pytest.approx(1, abs=0.05)
    top = numbers(page)[0]
    page.keyboard.press("ArrowDown")
    assert numbers(page)[0] < top
    assert page.evaluate(SAVED)[1:] == saved_values("three_rewards_one_per_step")[1:]


def test_more_rewards_have_linked_sliders_that_keep_ratios_and_without_normalise_the_sum(opened):
    page = opened("three_rewards_one_per_step")
    page.evaluate(f"""() => {{
        const node = {NODE}, loader = LiteGraph.createNode("DiffusionBlendLoadRewardLoRA");
        app.graph.add(loader);
        loader.connect(0, node, node.inputs.findIndex(({{ name, link }}) => name.startsWith("loras.") && link == null));
        node.widgets.find(({{ name }}) => name === "normalise").value = false;
        {TEXT} = "1, 0.5, 0.3, 0.2";
    }}""")
    page.wait_for_timeout(600)
    x, y, width = middle(page.locator(f"{CONTROLS} input").first)
    drag(page, (x, y), (x + width, y), (x, y))
    first, *others = numbers(page)
    assert 0.8 < first < 1.2
    assert others == pytest.approx([(2 - first) * share for share in (0.5, 0.3, 0.2)], abs=0.011)
    drag(page, (x, y), (x + width, y))
    assert page.evaluate(TEXT) == "2, 0, 0, 0"


def test_where_the_editor_has_no_such_widgets_one_warning_says_so_and_the_text_stays(opened):
    page = opened("two_rewards", before=REFUSED)
    assert page.locator(CONTROLS).count() == 0
    assert page.evaluate(SAVED) == saved_values("two_rewards")
    assert sum("no controls on Blend Weights" in text for text in page.messages) == 1
