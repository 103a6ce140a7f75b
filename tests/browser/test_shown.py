"""What a person sees after a run: texts on the nodes, in both editors, on both canvases."""

from .editor import node_of, runnable

LOADER, WEIGHTS, SAMPLER = "DiffusionBlendLoadRewardLoRA", "DiffusionBlendBlendWeights", "DiffusionBlendKSampler"
FORMULA = "0.6 preferred + 0.4 beautiful"


def texts(editor) -> dict[str, list[str]]:
    """The texts on the nodes of two_rewards, all of which are brought into view: the classic canvas hides others."""
    editor.centre("CheckpointLoaderSimple", 0.7)  # below 0.6 it draws no texts
    return {node: editor.shown(node) for node in (LOADER, WEIGHTS, SAMPLER)}


def test_after_a_run_every_node_shows_its_text_with_its_lines(visit):
    editor = visit(runnable("two_rewards"), WEIGHTS)
    assert editor.shown(WEIGHTS) == []
    editor.run()
    steps = [(detail["value"], detail["max"]) for kind, detail in editor.events if kind == "progress"]
    assert (1, 4) in steps and (4, 4) in steps
    contents = texts(editor)
    assert contents[WEIGHTS] == [f"{FORMULA}\nbase: 0\npreferred: 0.6\nbeautiful: 0.4"]
    assert len(contents[LOADER]) == 2 and all(text.count("\n") >= 3 for text in contents[LOADER])
    assert contents[SAMPLER][0].startswith(FORMULA)
    heights = editor.locator(".diffusion-blend-shown p").evaluate_all("(all) => all.map((one) => one.offsetHeight)")
    assert len(heights) == 4 and min(heights) >= 4 * 16
    saved = editor.evaluate(f"app.nodeOutputs[{node_of('SaveImage')}.id].images")
    assert len(saved) == 1 and saved[0]["filename"].endswith(".png")


def test_texts_are_there_after_switching_tabs_and_after_a_reload(visit):
    editor = visit(runnable("two_rewards"), WEIGHTS)
    editor.run()
    before = texts(editor)
    editor.load("kl_dial")
    assert editor.shown(LOADER) == []
    tabs = editor.locator(".workflow-label")
    tabs.nth(tabs.count() - 2).click()
    editor.wait(1500)
    assert texts(editor) == before
    editor.reload()
    assert texts(editor) == before


def test_nodes_answered_from_the_cache_show_their_texts(visit):
    graph = runnable("two_rewards")
    editor = visit(graph, WEIGHTS)
    editor.run()
    before = texts(editor)
    editor.load(graph | {"id": "9b6a1c1e-3f0b-4d43-8a0c-5a9a1f3d7c11"})
    assert editor.shown(WEIGHTS) == []
    editor.run()
    assert texts(editor) == before


def test_a_part_that_saves_nothing_is_no_input(visit):
    editor = visit("two_rewards", WEIGHTS)
    hidden = "node.widgets.filter(({ name }) => name.endsWith('_controls')).map(({ options }) => options.hideInPanel)"
    assert editor.evaluate(f"((node) => {hidden})({node_of(WEIGHTS)})") == [True, True]
