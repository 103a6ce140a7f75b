"""Apply Reward LoRAs: a row comes into sight when the one above has a file, and what was set in a row stays."""

import pytest

from .editor import node_of

NODE = "DiffusionBlendApplyLoRAs"
ROW = ("lora", "on", "weight")


def shown(editor):
    """The numbers of the rows in sight."""
    names = editor.evaluate(f"{node_of(NODE)}.widgets.filter((w) => !w.hidden).map((w) => w.name)")
    rows = {int(name.rpartition("_")[2]) for name in names if name.rpartition("_")[0] in ROW}
    assert {f"{part}_{row}" for row in rows for part in ROW} <= set(names)
    return sorted(rows)


def choose(editor, name, value=None):
    """Set a widget as a click does; without a value: the first file of a row's list."""
    editor.evaluate(
        f"""([name, value]) => {{
        const widget = {node_of(NODE)}.widgets.find((w) => w.name === name);
        widget.value = value ?? widget.options.values[1];
        widget.callback?.(widget.value);
    }}""",
        [name, value],
    )
    editor.wait(300)


@pytest.fixture
def editor(visit):
    editor = visit("two_rewards")
    editor.evaluate("(type) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(type)); }", NODE)
    editor.wait(400)
    return editor


def test_a_row_comes_with_a_file_above_it_and_keeps_what_was_set(editor):
    assert shown(editor) == [1]
    height = editor.evaluate(f"{node_of(NODE)}.size[1]")
    choose(editor, "lora_1")
    choose(editor, "weight_1", 0.3)
    choose(editor, "lora_2")
    assert shown(editor) == [1, 2, 3]
    assert editor.evaluate(f"{node_of(NODE)}.size[1]") > height
    choose(editor, "lora_2", "none")
    assert shown(editor) == [1, 2]
    assert editor.value(NODE, "weight_1") == 0.3


def test_a_saved_graph_opens_with_its_rows(editor):
    choose(editor, "lora_1")
    choose(editor, "lora_3")
    choose(editor, "weight_3", 0.7)
    editor.evaluate("() => app.loadGraphData(app.graph.serialize())")
    editor.wait(800)
    assert shown(editor) == [1, 2, 3, 4]
    assert editor.value(NODE, "weight_3") == 0.7
