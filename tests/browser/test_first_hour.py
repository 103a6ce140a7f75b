"""The first hour of a newcomer, by clicks: an empty ComfyUI, a template whose files are absent, a blend, its slider."""

import pytest

from . import real
from .editor import middle, runnable
from .test_examples import MISSING

TITLE = "01 Two rewards and a dial"
FILES = {
    "v1-5-pruned-emaonly-fp16.safetensors",
    "sd_1_5_dpo_lora_v1-128dim.safetensors",
    "spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
}
OFFERED = """(names) => {
    const lists = app.graph.nodes.flatMap(({ widgets }) => widgets ?? []).map(({ options }) => options?.values ?? []);
    const offered = lists.flatMap((list) => (typeof list === "function" ? list() : list));
    return names.every((name) => offered.includes(name));
}"""
SLIDER = ".diffusion-blend-weights input"


@pytest.fixture(params=["own", "newest"])
def empty_server(request, serve):
    """A server without any file, to which a test brings some."""
    with serve(request.param, models=False) as server:
        yield server


def images(server) -> list[bytes]:
    """What Save Image has written, in its order."""
    return [path.read_bytes() for path in sorted((server.folder / "output").glob("blend*.png"))]


def test_seven_clicks_lead_from_an_empty_editor_to_a_blend_and_to_another_one(editor, empty_server, canvas):
    opened = editor(f"http://127.0.0.1:{empty_server.port}", canvas)
    opened.page.get_by_role("button", name="Templates", exact=True).first.click()
    opened.page.get_by_role("dialog").get_by_text("diffusion-blend", exact=True).first.click()
    opened.page.get_by_text(TITLE).first.click()
    opened.page.wait_for_function(f"({MISSING})().length > 0")
    assert {model["name"] for model in opened.evaluate(MISSING)} == FILES
    real.write_models(empty_server.root, empty_server.folder / "models")  # in the place of three downloads
    opened.page.keyboard.press("Escape")
    opened.evaluate("document.activeElement.blur()")
    opened.page.keyboard.press("r")
    opened.page.wait_for_function(OFFERED, arg=sorted(FILES))
    opened.load(runnable("two_rewards"))  # the prompts: a text encoder is too large for a test
    opened.run()
    opened.centre("DiffusionBlendBlendWeights")
    x, y, width = middle(opened.locator(SLIDER).first)
    opened.drag((x + width * 0.1, y), (x - width * 0.3, y))
    opened.run()
    first, second = images(empty_server)
    assert first != second
