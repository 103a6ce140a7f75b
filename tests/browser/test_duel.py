"""The buttons of Blend Duel, on both canvases: each click runs the graph."""

import pytest

from .editor import node_of, runnable

DUEL = "DiffusionBlendDuel"
PLACE = f"""(label) => {{
    const node = {node_of(DUEL)}, widget = node.widgets.find(({{ name }}) => name === label);
    const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.x + x, box.y + y];
}}"""


@pytest.fixture
def duel(visit):
    """The editor with the example."""
    return visit(runnable("find_my_blend", steps=1), DUEL)


@pytest.fixture
def click(duel, canvas):
    """click(label): press a button of the node, wait for the end of the run, and return the pair that it shows."""

    def press(label):
        if canvas == "nodes2":
            duel.page.get_by_role("button", name=label).click()
        else:
            duel.page.mouse.click(*duel.evaluate(PLACE, label))

    def click_and_wait(label):
        duel.run(lambda: press(label))
        node = str(duel.evaluate(f"{node_of(DUEL)}.id"))
        (output,) = [sent["output"] for kind, sent in duel.events if kind == "executed" and sent["node"] == node]
        return output["diffusion_blend"][0]["pair"]

    return click_and_wait


def test_buttons_write_the_answer_about_the_pair_shown_and_run_the_next(duel, click):
    first = click("A is better")  # nothing shown yet: it only runs
    assert duel.value(DUEL, "answers") == ""
    second = click("A is better")
    assert duel.value(DUEL, "answers") == f"{first[0]} > {first[1]}" and second != first
    third = click("B is better")
    assert duel.value(DUEL, "answers").split("\n")[1] == f"{second[0]} < {second[1]}"
    click("no difference")
    assert duel.value(DUEL, "answers").split("\n")[2] == f"{third[0]} = {third[1]}"
    assert click("undo the last answer") == third
    assert len(duel.value(DUEL, "answers").split("\n")) == 2
    assert duel.saved(DUEL) == [duel.value(DUEL, "answers"), 0.05, 0, 0]


def test_buttons_go_on_after_a_reload(duel, click):
    click("A is better")
    second = click("A is better")
    duel.reload()
    duel.centre(DUEL)
    click("A is better")
    click("A is better")
    lines = duel.value(DUEL, "answers").split("\n")
    assert len(lines) == 3 and lines[1] == f"{second[0]} > {second[1]}"
