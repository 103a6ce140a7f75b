"""The buttons of Blend Duel, in ComfyUI's real editor in Chromium, on both canvases: each click runs the graph."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("playwright.sync_api", reason="browser tests SKIPPED: no playwright (pip install it)")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_blend_weights import CHROMIUM, PATIENCE, ROOT, address, browser  # noqa: F401 - fixtures

pytestmark = pytest.mark.skipif(not (CHROMIUM and ROOT), reason="browser tests SKIPPED: no Chromium or no ComfyUI")

FILES = ["calm.safetensors", "vivid.safetensors"]
NODE = "app.graph.nodes.find((node) => node.type === 'DiffusionBlendDuel')"
ANSWERS = f"{NODE}.widgets.find(({{ name }}) => name === 'answers').value"
BUILD = """(files) => {
    app.graph.clear();
    const made = (type, x) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, 0];
        return node;
    };
    const duel = made("DiffusionBlendDuel", 0), preview = made("PreviewAny", 500);
    files.forEach((file, i) => {
        const loader = made("DiffusionBlendLoadRewardLoRA", -500 - 400 * i);
        loader.widgets[0].value = file;
        loader.connect(0, duel, duel.inputs.findIndex(({ name }) => name === `loras.lora_${i}`));
    });
    duel.connect(3, preview, 0);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset[0] = 400;
    app.canvas.ds.offset[1] = 200;
    app.canvas.setDirty(true, true);
    window.shown = [];
    const own = duel.onExecuted;
    duel.onExecuted = function (output) { own.apply(this, arguments); window.shown.push(output.duel); };
}"""


@pytest.fixture(scope="module")
def loras(address, tmp_path_factory):  # noqa: F811
    """Two small reward LoRAs where the server looks for them."""
    folder = max(tmp_path_factory.getbasetemp().glob("editor*"), key=lambda path: path.stat().st_mtime)
    (folder / "models" / "loras").mkdir(parents=True, exist_ok=True)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    for file in FILES:
        pair = {f"{name}.lora_down.weight": torch.ones(2, 320), f"{name}.lora_up.weight": torch.ones(320, 2)}
        save_file(pair, folder / "models" / "loras" / file)


@pytest.fixture(params=[False, True], ids=["classic", "nodes2"])
def page(request, address, browser, loras):  # noqa: F811
    """The editor with a duel of two LoRAs whose text is previewed: it runs without a model."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(address)
    page.wait_for_function("!!window.LiteGraph?.registered_node_types?.DiffusionBlendDuel && !!window.app?.graph")
    page.wait_for_timeout(2000)
    page.keyboard.press("Escape")  # the templates that greet a new user
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
    page.evaluate(BUILD, FILES)
    page.wait_for_timeout(1500)
    page.nodes2 = request.param
    yield page
    context.close()


def click(page, label):
    """Click a button of the node, and wait until the run that it queues has shown a pair."""
    before = page.evaluate("shown.length")
    if page.nodes2:
        page.get_by_role("button", name=label).click()
    else:
        x, y = page.evaluate(f"""() => {{
            const node = {NODE}, {{ y }} = node.widgets.find(({{ name }}) => name === "{label}");
            const place = [node.pos[0] + node.size[0] / 2, node.pos[1] + y + 10];
            const [left, top] = app.canvas.convertOffsetToCanvas(place);
            const box = app.canvas.canvas.getBoundingClientRect();
            return [box.x + left, box.y + top];
        }}""")
        page.mouse.click(x, y)
    page.wait_for_function("(before) => shown.length > before", arg=before)
    return page.evaluate("shown.at(-1)")


def test_buttons_write_the_answer_about_the_pair_shown_and_run_the_next(page):
    first = click(page, "A is better")  # nothing shown yet: it only runs
    assert page.evaluate(ANSWERS) == ""
    second = click(page, "A is better")
    assert page.evaluate(ANSWERS) == f"{first[0]} > {first[1]}" and second != first
    third = click(page, "B is better")
    assert page.evaluate(ANSWERS).split("\n")[1] == f"{second[0]} < {second[1]}"
    click(page, "no difference")
    assert page.evaluate(ANSWERS).split("\n")[2] == f"{third[0]} = {third[1]}"
    assert click(page, "undo the last answer") == third
    assert len(page.evaluate(ANSWERS).split("\n")) == 2
    saved = page.evaluate("app.graph.serialize().nodes.find((node) => node.type === 'DiffusionBlendDuel')")
    assert saved["widgets_values"] == [page.evaluate(ANSWERS), 0.05, 0, 0]
