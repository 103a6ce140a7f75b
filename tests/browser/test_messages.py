"""What a person reads where a graph is refused or fails: the sentence stands on the node."""

from .editor import node_of, runnable, widget_of

WEIGHTS, LOADER, KL = "DiffusionBlendBlendWeights", "DiffusionBlendLoadRewardLoRA", "DiffusionBlendKLInterpolate"
REWARD = "DiffusionBlendLoadRewardModel"
WORDS = "the weights 'a, b' are not numbers"


def press_run(editor, until: str) -> None:
    """Press Run and wait for something."""
    editor.evaluate("""() => {
        window.failures = [];
        app.api.addEventListener("execution_error", ({ detail }) => window.failures.push(detail));
    }""")
    editor.locator("[data-testid=queue-button]").click()
    editor.page.wait_for_function(until)
    editor.wait(600)


def give(editor, node: str, widget: str, value) -> None:
    """Type into a widget of the first node of a type."""
    editor.evaluate(f"(value) => {{ {widget_of(node, widget)}.value = value; }}", value)


def test_weights_that_are_no_numbers_are_refused_on_the_node_before_the_run(visit):
    editor = visit(runnable("two_rewards"), WEIGHTS)
    give(editor, WEIGHTS, "weights", "a, b")
    press_run(editor, "app.lastNodeErrors && Object.keys(app.lastNodeErrors).length > 0")
    assert editor.evaluate("window.failures") == []
    errors = editor.evaluate(f"app.lastNodeErrors[{node_of(WEIGHTS)}.id].errors")
    assert len(errors) == 1 and WORDS in errors[0]["details"]
    assert editor.shown(WEIGHTS)[0].startswith(WORDS)
    give(editor, WEIGHTS, "weights", "0,6; 0,4")
    editor.run()
    assert editor.shown(WEIGHTS)[0].startswith("0.6 preferred + 0.4 beautiful")


def test_a_failed_run_says_why_on_the_node_and_names_the_slots(visit):
    editor = visit(runnable("two_rewards"), WEIGHTS)
    give(editor, WEIGHTS, "weights", "0.5, 0.3, 0.2")
    press_run(editor, "window.failures.length > 0")
    failure = editor.evaluate("window.failures[0]")
    assert failure["exception_type"] == "BlendError"
    sentence = "3 weights (0.5, 0.3, 0.2) for 2 reward LoRAs (lora_0 preferred, lora_1 beautiful)."
    assert failure["exception_message"].startswith(sentence)
    assert editor.shown(WEIGHTS)[0].startswith(sentence)
    assert editor.locator(".diffusion-blend-shown [role=alert]").count() == 1


def test_a_muted_or_bypassed_lora_keeps_its_number_and_the_graph_runs(visit):
    graph = runnable("two_rewards")
    loaders = [node for node in graph["nodes"] if node["type"] == LOADER]
    for node, mode in ((loaders[0], 4), (loaders[1], 2)):
        node["mode"] = mode
        editor = visit(graph, WEIGHTS)
        label = loaders[1 - loaders.index(node)]["widgets_values"][1]
        off = editor.locator(".diffusion-blend-weights span").filter(has_text="(off)")
        off.first.wait_for()  # the part looks at the graph from time to time
        assert off.count() == 1
        editor.run()
        assert editor.shown(WEIGHTS)[0].startswith(f"1 {label}")
        assert editor.value(WEIGHTS, "weights") == "0.6, 0.4"
        node["mode"] = 0


def test_without_weights_all_are_equal(visit):
    graph = runnable("two_rewards")
    next(node for node in graph["nodes"] if node["type"] == WEIGHTS)["widgets_values"][0] = ""
    editor = visit(graph, WEIGHTS)
    assert editor.locator(".diffusion-blend-weights").evaluate("(part) => part.style.opacity") == ""
    editor.run()
    assert editor.shown(WEIGHTS)[0].startswith("0.5 preferred + 0.5 beautiful")


def test_a_single_reward_lora_runs_where_a_blend_is_expected(visit):
    graph = runnable("kl_dial")
    next(node for node in graph["nodes"] if node["type"] == KL)["mode"] = 4  # bypassed: the LoRA goes to the sampler
    editor = visit(graph, "DiffusionBlendKSampler")
    editor.run()
    assert editor.shown("DiffusionBlendKSampler")[0].startswith("1 ")


def test_missing_weights_of_a_reward_are_told_once_in_the_nodes_words(visit):
    graph = runnable("best_of_four")
    next(node for node in graph["nodes"] if node["type"] == REWARD)["widgets_values"][0] = "pickscore"
    editor = visit(graph, REWARD)
    press_run(editor, "app.lastNodeErrors && Object.keys(app.lastNodeErrors).length > 0")
    errors = [error for node in editor.evaluate("Object.values(app.lastNodeErrors)") for error in node["errors"]]
    assert len(errors) == 1
    (text,) = editor.shown(REWARD)
    assert text.startswith("pickscore needs") and "allow_download on this node" in text and "--download" not in text
