"""The example graphs as a newcomer meets them: files to download, nodes beside one another, titles in order."""

import json
from itertools import combinations

import pytest

from .editor import EXAMPLES, content_of, node_of, runnable

LOADER = "DiffusionBlendLoadRewardLoRA"
MISSING = """() => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia.state.value;
    return (stores.missingModel.missingModelCandidates ?? []).map(({ name, url, directory, hash, nodeType }) =>
        ({ name, url, directory, hash, nodeType }));
}"""
BOXES = """() => app.graph.nodes.map((node) => {
    const [x, y, width, height] = node.getBounding();
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
    return { name: node.title, x, y, width, height: Math.max(height, drawn?.offsetHeight ?? 0) };
})"""
EMPTY = """() => app.graph.nodes.filter(({ type }) => !/Image|Mask|Note|TextEncode/.test(type))
    .map((node) => [node.title, node.size[1] - node.computeSize()[1]])"""
KEYS = ("nodeType", "name", "url", "directory", "hash")
SPARE = 45  # pixels: a multiline text's widget may take more than it needs
SLACK = 2  # pixels of rounding


@pytest.fixture(scope="module", params=["own", "newest"])
def bare_server(request, serve):
    """A server without any model's file, under both editors."""
    with serve(request.param, models=False) as server:
        yield server


def test_missing_files_are_offered_with_their_addresses_also_those_of_load_reward_lora(editor, bare_server, canvas):
    opened = editor(f"http://127.0.0.1:{bare_server.port}", canvas)
    for example in EXAMPLES:
        expected = {
            (node["type"], model["name"], model["url"], model["directory"], model.get("hash"))
            for node in content_of(example)["nodes"]
            for model in node["properties"].get("models", ())
        }
        opened.load(example)
        opened.page.wait_for_function(f"({MISSING})().length > 0")
        entries = [[one[key] for key in KEYS] for one in opened.evaluate(MISSING)]
        assert set(map(tuple, entries)) == expected, example
        assert all(url.startswith(("https://huggingface.co/", "https://civitai.com/")) for _, _, url, *_ in expected)
    kinds = {node["type"] for node in content_of("two_rewards")["nodes"] if node["properties"].get("models")}
    assert kinds == {"CheckpointLoaderSimple", "DiffusionBlendLoadRewardLoRA"}


def test_without_any_lora_the_node_says_where_to_put_one(editor, bare_server, canvas):
    opened = editor(f"http://127.0.0.1:{bare_server.port}", canvas)
    opened.load("kl_dial")
    opened.evaluate(f"""() => {{
        const old = {node_of(LOADER)}, fresh = LiteGraph.createNode("{LOADER}");
        app.graph.add(fresh);
        fresh.connect(0, {node_of("DiffusionBlendKLInterpolate")}, 0);
        app.graph.remove(old);
    }}""")
    opened.locator("[data-testid=queue-button]").click()
    opened.page.wait_for_function("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length > 0")
    opened.centre(LOADER)
    assert opened.shown(LOADER) == [
        "lora_name is missing, because there is no LoRA in models/loras. Put the reward LoRA's file there, press R, "
        "and choose it."
    ]


def overlapping(boxes: list[dict]) -> list[tuple[str, str]]:
    """The nodes that cover each other."""

    def meet(a: dict, b: dict, axis: str, length: str) -> bool:
        return a[axis] + SLACK < b[axis] + b[length] and b[axis] + SLACK < a[axis] + a[length]

    pairs = combinations(boxes, 2)
    return [(a["name"], b["name"]) for a, b in pairs if meet(a, b, "x", "width") and meet(a, b, "y", "height")]


def test_no_node_covers_another_before_or_after_a_run_and_none_has_an_empty_half(visit, canvas):
    editor = visit(runnable("two_rewards"))
    for example in EXAMPLES:
        editor.load(runnable(example, steps=2))
        assert overlapping(editor.evaluate(BOXES)) == [], example
        if canvas == "classic":  # on the other one the editor sizes nodes itself
            assert [node for node in editor.evaluate(EMPTY) if node[1] > SPARE] == [], example
        editor.run()
        assert overlapping(editor.evaluate(BOXES)) == [], example


def test_the_examples_pass_the_editors_schema_and_have_ids_of_their_own(visit):
    editor = visit("two_rewards", **{"Comfy.Validation.Workflows": True})
    for example in EXAMPLES:
        editor.load(example)
    assert not [text for text in editor.messages if "schema" in text]
    assert editor.locator("text=Invalid workflow").count() == 0
    graphs = [content_of(example) for example in EXAMPLES]
    assert len({graph["id"] for graph in graphs}) == len(graphs)
    assert "null" not in {json.dumps(slot["slot_index"]) for slot in slots(graphs) if "slot_index" in slot}


def slots(graphs: list[dict]):
    """All inputs and outputs."""
    for graph in graphs:
        for node in graph["nodes"]:
            yield from (*(node.get("inputs") or ()), *(node.get("outputs") or ()))
