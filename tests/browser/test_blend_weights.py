"""The controls on Blend Weights, on both of the editor's canvases."""

import pytest

from .editor import middle, node_of, saved_values, widget_of

BLEND_WEIGHTS = "DiffusionBlendBlendWeights"
NODE = node_of(BLEND_WEIGHTS)
TEXT = f"{widget_of(BLEND_WEIGHTS, 'weights')}.value"
CONTROLS = ".diffusion-blend-weights"


def numbers(editor) -> list[float]:
    """The numbers in the text."""
    return [float(word) for word in editor.evaluate(TEXT).split(", ")]


def test_two_rewards_have_a_slider_that_undo_and_typing_move(opened):
    editor = opened("two_rewards")
    assert editor.saved(BLEND_WEIGHTS) == saved_values("two_rewards", BLEND_WEIGHTS)
    assert editor.locator(f"{CONTROLS} span").all_inner_texts() == ["preferred 0.60", "beautiful 0.40"]
    slider, place = editor.locator(f"{CONTROLS} input"), editor.evaluate(f"[...{NODE}.pos]")
    x, y, width = middle(slider)
    editor.drag((x - width * 0.1, y), (x + width * 0.3, y))
    first, second = numbers(editor)
    assert first + second == pytest.approx(1) and second > 0.7
    assert editor.saved(BLEND_WEIGHTS)[1:] == saved_values("two_rewards", BLEND_WEIGHTS)[1:]
    assert editor.evaluate(f"[...{NODE}.pos]") == place

    editor.undo()
    assert editor.evaluate(TEXT) == "0.6, 0.4"
    assert float(slider.input_value()) == pytest.approx(0.4)
    editor.evaluate(f"() => {{ {TEXT} = '25%; 75%'; }}")
    editor.wait(500)
    assert float(slider.input_value()) == pytest.approx(0.75)


def test_three_rewards_have_a_point_in_a_triangle(opened):
    editor = opened("three_rewards")
    assert editor.saved(BLEND_WEIGHTS) == saved_values("three_rewards", BLEND_WEIGHTS)
    labels = editor.locator(f"{CONTROLS} svg > text").all_text_contents()  # a title follows in each
    assert labels == ["objects 0.50objects", "lettering 0.30lettering", "preferred 0.20preferred"]
    x, y, _ = middle(editor.locator(f"{CONTROLS} circle"))
    editor.drag((x, y), (x + 10, y + 10))
    assert sum(numbers(editor)) == pytest.approx(1)
    corner_x, _, _ = middle(editor.locator(f"{CONTROLS} polygon"))
    editor.drag((x + 10, y + 10), (corner_x, y - 400))
    assert numbers(editor)[0] == pytest.approx(1, abs=0.05)
    top = numbers(editor)[0]
    editor.page.keyboard.press("ArrowDown")
    assert numbers(editor)[0] < top
    place, _, _ = middle(editor.locator(f"{CONTROLS} polygon"))
    editor.page.mouse.click(place, y)  # beside the point, which then has the focus
    clicked = numbers(editor)
    editor.page.keyboard.press("ArrowDown")
    assert numbers(editor)[0] < clicked[0]
    assert editor.saved(BLEND_WEIGHTS)[1:] == saved_values("three_rewards", BLEND_WEIGHTS)[1:]


def test_more_rewards_have_linked_sliders_that_keep_ratios_and_without_normalise_the_sum(opened):
    editor = opened("three_rewards")
    editor.evaluate(f"""() => {{
        const node = {NODE}, loader = LiteGraph.createNode("DiffusionBlendLoadRewardLoRA");
        app.graph.add(loader);
        loader.connect(0, node, node.inputs.findIndex(({{ name, link }}) => name.startsWith("loras.") && link == null));
        node.widgets.find(({{ name }}) => name === "normalise").value = false;
        {TEXT} = "1, 0.5, 0.3, 0.2";
    }}""")
    editor.wait(600)
    x, y, width = middle(editor.locator(f"{CONTROLS} input").first)
    editor.drag((x, y), (x + width, y), (x, y))
    first, *others = numbers(editor)
    assert 0.8 < first < 1.2
    assert others == pytest.approx([(2 - first) * share for share in (0.5, 0.3, 0.2)], abs=0.011)
    editor.drag((x, y), (x + width, y))
    assert editor.evaluate(TEXT) == "2, 0, 0, 0"


def test_a_stack_brings_as_many_rewards_as_the_text_has_further_numbers(opened):
    editor = opened("two_rewards")
    editor.evaluate(f"""() => {{
        const node = {NODE}, stack = LiteGraph.createNode("Reroute");
        app.graph.add(stack);
        stack.connect(0, node, node.inputs.findIndex(({{ name }}) => name === "lora_stack"));
        {TEXT} = "0.5, 0.3, 0.2";
    }}""")
    editor.wait(600)
    labels = editor.locator(f"{CONTROLS} svg > text").all_text_contents()
    assert labels == ["preferred 0.50preferred", "beautiful 0.30beautiful", "reward 3 0.20reward 3"]
    assert editor.locator(CONTROLS).evaluate("(part) => part.style.opacity") == ""


def test_weights_below_0_wait_and_keep_their_sign_beside_a_muted_reward(opened):
    editor = opened("two_rewards")
    editor.evaluate(f"""() => {{
        const node = {NODE}, slot = node.inputs.findIndex(({{ name }}) => name === "loras.lora_0");
        node.getInputNode(slot).mode = 2;
        {TEXT} = "1, -0.5";
    }}""")
    editor.wait(600)
    assert editor.locator(CONTROLS).evaluate("(part) => part.style.opacity") == "0.5"
    assert editor.locator(f"{CONTROLS} span").all_inner_texts()[1] == "beautiful 0.50", "no shares: all equal"
    prompt = editor.evaluate("async () => (await app.graphToPrompt()).output")
    (weights,) = (node["inputs"]["weights"] for node in prompt.values() if node["class_type"] == BLEND_WEIGHTS)
    assert weights == "-0.5"
