"""The parts on KL Interpolate, Reward Scorer and Stochastic LS Sampler, and editors that refuse such parts."""

import pytest

from .editor import content_of, middle, node_of, runnable, saved_values, widget_of

KL, SCORER, STOCHASTIC = "DiffusionBlendKLInterpolate", "DiffusionBlendRewardScorer", "DiffusionBlendStochasticLS"
SCORES = [["image", "pickscore", "sharpness", "weighted"], ["1", "21.5", "-3", "nan"], ["0", "20.5", "-5", "18"]]
CHOICES = {"names": ["base", "preferred", "calm"], "images": [[None, 1, 2, 1], [None, 0, 1, 1]]}
REFUSED = """() => {
    const prototype = LiteGraph.LGraphNode.prototype, own = prototype.addDOMWidget;
    prototype.addDOMWidget = function (name, ...rest) {
        if (name.endsWith("_controls")) throw new TypeError("addDOMWidget is gone");
        return own.call(this, name, ...rest);
    };
}"""
PARTS = {
    "two_rewards": "Blend Weights",
    "kl_dial": "KL Interpolate",
    "best_of_four": "Reward Scorer",
    "three_rewards": "Stochastic LS Sampler",
    "sweep": "Texts",
}


def finish(editor, node: str, **data):
    """Tell a node that it has run, as the server does."""
    sent = {"text": ["text"], "diffusion_blend": [data]}
    editor.evaluate(f"(sent) => {{ app.nodeOutputs[{node_of(node)}.id] = sent; }}", sent)
    editor.wait(600)


def test_the_kl_dial_has_marks_and_keys_that_set_its_widget(opened):
    editor = opened("kl_dial", KL)
    slider = editor.locator(".diffusion-blend-alignment input")
    pressed = editor.locator(".diffusion-blend-alignment [aria-pressed=true]")
    assert editor.saved(KL) == saved_values("kl_dial", KL) == [0.5, 1]
    assert editor.evaluate(f"{widget_of(KL, 'alignment')}.type") == "number", "the dial is the only slider"
    assert float(slider.input_value()) == 0.5 and pressed.count() == 0
    for mark, value in {"as trained": 1, "beyond": 1.5, "base": 0}.items():
        editor.page.get_by_role("button", name=mark, exact=True).click()
        editor.wait(400)
        assert editor.value(KL, "alignment") == value == float(slider.input_value())
        assert pressed.all_inner_texts() == [mark]
    slider.focus()
    for _ in range(3):
        editor.page.keyboard.press("ArrowRight")
    assert editor.value(KL, "alignment") == pytest.approx(0.15)
    x, y, width = middle(slider)
    editor.drag((x - width * 0.4, y), (x, y))
    assert editor.value(KL, "alignment") == pytest.approx(1.5, abs=0.06)
    assert editor.saved(KL) == [editor.value(KL, "alignment"), 1]
    editor.undo()
    assert editor.value(KL, "alignment") < 1.4
    editor.evaluate(f"() => {{ {node_of(KL)}.widgets.find(({{ name }}) => name === 'alignment').value = 2; }}")
    editor.wait(400)
    assert float(slider.input_value()) == 2


def test_a_graph_from_before_until_opens_with_1(opened):
    editor, graph = opened("kl_dial", KL), content_of("kl_dial")
    node = next(node for node in graph["nodes"] if node["type"] == KL)
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] != "until"]
    node |= {"widgets_values": [0.7], "widgets_values_named": {"alignment": 0.7}}
    editor.load(graph)
    assert editor.saved(KL) == [0.7, 1]


def test_the_scorer_draws_its_table_with_bars(opened):
    editor = opened("best_of_four", SCORER)
    before = editor.saved(SCORER)
    cells = editor.locator(".diffusion-blend-scores td")
    assert cells.count() == 0
    finish(editor, SCORER, scores=SCORES)
    assert editor.locator(".diffusion-blend-scores th").all_inner_texts() == SCORES[0]
    assert cells.all_inner_texts() == [text for row in SCORES[1:] for text in row]
    bars = [cell.evaluate("(cell) => Number(cell.style.getPropertyValue('--share'))") for cell in cells.all()]
    assert bars == [0, 1, 1, 0, 0, 0, 0, 0]
    assert cells.last.is_visible()
    assert editor.saved(SCORER) == before


def test_the_stochastic_sampler_draws_which_basis_each_step_used(opened):
    editor = opened("three_rewards", STOCHASTIC)
    before = editor.saved(STOCHASTIC)
    finish(editor, STOCHASTIC, choices=CHOICES)
    part = editor.locator(".diffusion-blend-choices")
    assert part.locator("p span").all_inner_texts() == ["base 1", "preferred 4", "calm 1", "all 2"]
    strips = part.get_by_role("img")
    assert strips.first.get_attribute("aria-label") == "image 1: all, preferred, calm, preferred"
    colours = [box.evaluate("(box) => box.style.background") for box in strips.first.locator("i").all()]
    assert len(colours) == 4 and colours[1] == colours[3] and len(set(colours)) == 3
    assert strips.last.is_visible()
    assert editor.saved(STOCHASTIC) == before


def test_a_run_of_the_scorer_shows_its_four_images(visit):
    editor = visit(runnable("best_of_four"), SCORER)
    editor.run()
    rows = editor.locator(".diffusion-blend-scores tbody tr").all_inner_texts()
    assert sorted(row.split()[0] for row in rows) == ["0", "1", "2", "3"]


def test_a_run_of_the_stochastic_sampler_shows_its_four_steps(visit):
    editor = visit(runnable("three_rewards"), STOCHASTIC)
    editor.run()
    label = editor.locator(".diffusion-blend-choices section").get_attribute("aria-label")
    steps = label.removeprefix("image 1: ").split(", ")
    assert len(steps) == 4 and set(steps) <= {"all", "objects", "lettering", "preferred"}


def test_where_the_editor_refuses_parts_one_warning_says_so_and_graphs_are_as_ever(editor, address, canvas):
    refusing = editor(address, canvas, REFUSED)
    for graph, title in PARTS.items():
        refusing.load(graph)
        assert refusing.evaluate("app.graph.nodes.length") == len(content_of(graph)["nodes"])
        prompt = refusing.evaluate("app.graphToPrompt().then(({ output }) => Object.values(output))")
        assert all("_controls" not in name for node in prompt for name in node["inputs"])
        assert len([node for node in prompt if node["class_type"].startswith("DiffusionBlend")]) > 2
        assert sum(f" on {title}; the graph works" in text for text in refusing.messages) == 1
    assert refusing.locator(".diffusion-blend").count() == 0
    assert refusing.saved("DiffusionBlendBlendWeights") == saved_values(graph, "DiffusionBlendBlendWeights")
