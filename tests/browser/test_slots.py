"""Growing slots: links stay on their inputs when a graph is opened, copied, or put into a subgraph."""

from .editor import content_of, node_of

WEIGHTS, LOADER = "DiffusionBlendBlendWeights", "DiffusionBlendLoadRewardLoRA"
LINKS = """async () => Object.values((await app.graphToPrompt()).output)
    .filter(({ class_type }) => class_type === "DiffusionBlendBlendWeights")
    .map(({ inputs }) => Object.keys(inputs).filter((name) => Array.isArray(inputs[name])).sort())"""
ALL = ["lora_stack", "loras.lora_0", "loras.lora_1", "loras.lora_2"]


def before_the_stack_came_first() -> dict:
    """A graph of three LoRAs and a stack as they were first saved: lora_stack behind the slots."""
    graph = content_of("three_rewards")
    weights = next(node for node in graph["nodes"] if node["type"] == WEIGHTS)
    stack = {"id": 90, "type": "Stacker", "pos": [0, 1100], "size": [300, 100], "mode": 0, "inputs": []}
    stack |= {"outputs": [{"name": "LORA_STACK", "type": "LORA_STACK", "links": [90]}], "widgets_values": [""]}
    graph["nodes"].append(stack)
    graph["links"].append([90, 90, 0, weights["id"], 0, "LORA_STACK"])
    inputs = {entry["name"]: entry for entry in weights["inputs"]}
    inputs["lora_stack"]["link"] = 90
    slots = [name for name in inputs if name.startswith("loras.")]
    widgets = [name for name in inputs if name not in (*slots, "lora_stack")]
    weights["inputs"] = [inputs[name] for name in (*slots, "lora_stack", *widgets)]
    numbers = {entry["link"]: number for number, entry in enumerate(weights["inputs"]) if entry["link"] is not None}
    for link in graph["links"]:
        link[4] = numbers.get(link[0], link[4])
    return graph


def test_a_saved_graph_with_the_stack_behind_the_slots_keeps_its_links(visit):
    editor = visit(before_the_stack_came_first(), WEIGHTS)
    assert editor.evaluate(LINKS) == [ALL]
    names = editor.evaluate(f"{node_of(WEIGHTS)}.inputs.map(({{ name }}) => name)")
    assert names[0] == "lora_stack" and names[1:5] == [f"loras.lora_{i}" for i in range(4)]
    assert editor.evaluate(f"{node_of(WEIGHTS)}.widgets.map(({{ value }}) => value)")[:3] == ["0.5, 0.3, 0.2", True, 0]


def test_three_loras_and_a_stack_keep_their_links_when_copied_and_in_a_subgraph(visit):
    graph = before_the_stack_came_first()
    editor = visit(graph, WEIGHTS)
    editor.evaluate(f"""() => {{
        app.canvas.deselectAll();
        app.canvas.selectNode({node_of(WEIGHTS)});
        app.canvas.copyToClipboard();
        app.canvas.pasteFromClipboard({{ connectInputs: true }});
    }}""")
    editor.wait(600)
    assert editor.evaluate(LINKS) == [ALL, ALL]
    editor.load(graph)
    editor.evaluate(f"() => {{ app.graph.convertToSubgraph(new Set([{node_of(WEIGHTS)}])); }}")
    editor.wait(600)
    assert editor.evaluate(LINKS) == [ALL]
