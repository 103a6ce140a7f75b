"""A user's way through the editor: finding nodes, opening the examples, help, undo, saving, a run."""

import json

import pytest

from .editor import EXAMPLES, REPOSITORY, content_of, middle, node_of, runnable

TEXTS = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf8"))
COMPLAINTS = """() => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia.state.value;
    const nodes = app.graph.nodes, complaints = [];
    complaints.push(...(stores.missingNodesError?.missingNodesError?.nodeTypes ?? []).map(({ type }) => type));
    complaints.push(...(stores.missingModel?.missingModelCandidates ?? []).map(({ name }) => name));
    for (const node of nodes) {
        if (!LiteGraph.registered_node_types[node.type]) complaints.push(node.type);
        if (node.has_errors || node.inputs?.some(({ hasErrors }) => hasErrors)) complaints.push(`${node.type} is red`);
        for (const { name, type, value, options } of node.widgets ?? [])
            if (type === "combo" && Array.isArray(options?.values) && !options.values.includes(value))
                complaints.push(`${node.type}: ${name} ${value}`);
    }
    return complaints;
}"""


def test_every_node_is_found_by_its_name_and_by_its_aliases(editor, address):
    nodes = editor(address)
    nodes.evaluate("app.graph.clear()")
    search = nodes.node_search()
    wanted = {text["display_name"]: text["display_name"] for text in TEXTS.values()}
    wanted |= {"best of n": "Pick Best", "aesthetic score": "Reward Scorer", "DB-KLA": "KL Interpolate"}
    wanted |= dict.fromkeys(("mix lora", "merge lora", "multi lora", "lora stack", "rlhf"), "Blend Weights")
    wanted |= {"flow-grpo": "Load Reward LoRA", "score image": "Reward Scorer"}
    for words, name in wanted.items():
        search.fill(words)
        nodes.page.get_by_role("option", name=name).first.wait_for()
    assert len(wanted) > 15


def test_every_example_opens_with_no_missing_node_or_model_and_no_red_input(editor, recorded, canvas):
    opened = editor(recorded, canvas)
    assert len(EXAMPLES) > 5
    for example in EXAMPLES:
        opened.load(example)
        assert opened.evaluate("app.graph.nodes.length") == len(content_of(example)["nodes"])
        assert opened.evaluate(COMPLAINTS) == [], example
    assert not [text for text in opened.messages if "Diffusion Blend" in text]


def test_what_is_missing_or_red_is_seen(editor, recorded):
    opened = editor(recorded)
    graph = content_of("two_rewards")
    kinds = {node["type"]: node for node in graph["nodes"]}
    kinds["VAEDecode"]["type"] = "Gone"
    kinds["CheckpointLoaderSimple"]["widgets_values"] = ["gone.safetensors"]
    kinds["DiffusionBlendKSampler"]["widgets_values"][4] = "gone sampler"
    opened.load(graph)
    complaints = opened.evaluate(COMPLAINTS)
    expected = {"Gone", "gone.safetensors", "CheckpointLoaderSimple is red"}
    assert {*expected, "DiffusionBlendKSampler: sampler_name gone sampler"} <= set(complaints)


def test_the_triangles_point_survives_saving_and_loading(opened):
    editor = opened("three_rewards")
    point = editor.locator(".diffusion-blend-weights circle")
    x, y, _ = middle(point)
    editor.drag((x, y), (x - 20, y + 15))
    text, saved = editor.value("DiffusionBlendBlendWeights", "weights"), editor.evaluate("app.graph.serialize()")
    assert text != "0.5, 0.3, 0.2" and text in json.dumps(saved)
    editor.load("two_rewards")
    assert editor.value("DiffusionBlendBlendWeights", "weights") == "0.6, 0.4"
    editor.load(saved)
    editor.centre("DiffusionBlendBlendWeights")
    assert editor.value("DiffusionBlendBlendWeights", "weights") == text
    assert middle(point)[:2] == pytest.approx((x - 20, y + 15), abs=8)


def test_undo_brings_a_deleted_node_and_its_controls_back(opened):
    editor = opened("two_rewards")
    count = "app.graph.nodes.length"
    before = editor.evaluate(count)
    editor.evaluate(f"app.canvas.selectNode({node_of('DiffusionBlendBlendWeights')})")
    editor.locator("[data-testid=delete-button]").click()
    editor.wait(800)
    assert editor.evaluate(count) == before - 1
    editor.undo()
    assert editor.evaluate(count) == before
    assert editor.locator(".diffusion-blend-weights input").is_visible()


def test_help_shows_our_page_and_its_picture(opened):
    editor = opened("two_rewards")
    editor.evaluate(f"app.canvas.selectNode({node_of('DiffusionBlendBlendWeights')})")
    editor.locator("[data-testid=info-button]").click()
    page = editor.page.get_by_role("heading", name="When not to use it")
    page.wait_for()
    assert editor.page.get_by_role("heading", name="Inputs").is_visible()
    wide, panel = page.evaluate("({ parentElement: page }) => [page.scrollWidth, page.clientWidth]")
    assert wide <= panel
    editor.page.wait_for_function("document.querySelector('img[alt=\"Blend Weights\"]')?.naturalWidth > 100")


def test_every_example_runs_as_the_editor_exports_it(editor, real_server):
    exporting = editor(f"http://127.0.0.1:{real_server.port}")
    for example in EXAMPLES:
        exporting.load(runnable(example, steps=2))
        prompt = exporting.evaluate("async () => (await app.graphToPrompt()).output")
        history = real_server.finish(real_server.queue(prompt))
        assert history["status"]["status_str"] == "success", (example, history["status"])
        assert any("images" in output for output in history["outputs"].values()), example


def test_the_files_of_the_examples_are_those_that_are_known():
    stems = {path.stem for path in (REPOSITORY / "example_workflows").iterdir()}
    assert stems == set(EXAMPLES.values())


def test_names_and_drawn_words_are_in_the_editors_language(visit):
    editor = visit("kl_dial", "DiffusionBlendKLInterpolate", **{"Comfy.Locale": "zh"})
    assert editor.evaluate(f"{node_of('DiffusionBlendKLInterpolate')}.title") == "KL 插值"
    editor.page.get_by_role("button", name="训练时", exact=True).wait_for()
    names = editor.evaluate(f"{node_of('DiffusionBlendLoadRewardLoRA')}.widgets.map((widget) => widget.label)")
    assert "KL 权重（0：取自文件）" in names
