"""A window of steps: which steps have which coefficients."""

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError, Schedule
from diffusion_blend.blend_core.windows import Window

NAMES = ("a", "b")
A, B = (Schedule.even([Blend(NAMES, preference)]) for preference in ((1.0, 0.0), (0.0, 1.0)))
BASE = A.aligned(0)


def shares(window, steps):
    """How much of the first basis each step has."""
    return window.coefficients(steps)[:, 1].tolist()


@pytest.mark.parametrize(
    ("start", "end", "steps", "expected"),
    [
        (0, 2, 4, [1, 1, 0, 0]),
        (1, 3, 4, [0, 1, 1, 0]),
        (2, 10000, 4, [0, 0, 1, 1]),
        (0, 10000, 3, [1, 1, 1]),
        (3, 4, 4, [0, 0, 0, 1]),
        (4, 5, 4, [0, 0, 0, 0]),
        (0, 1, 1, [1]),
    ],
)
def test_the_window_holds_its_steps_and_no_others(start, end, steps, expected):
    assert shares(Window(A, BASE, start, end), steps) == expected


def test_a_fade_spreads_the_change_within_the_window():
    third = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0], dtype=torch.float64) / 3
    torch.testing.assert_close(Window(A, B, 1, 7, fade=2).coefficients(8)[:, 1], third)
    torch.testing.assert_close(Window(A, B, 1, 7, fade=2).coefficients(8)[:, 2], 1 - third)


def test_there_is_no_fade_at_the_ends_of_the_run():
    assert shares(Window(A, BASE, 0, 3, fade=1), 4) == [1, 1, 0.5, 0]
    assert shares(Window(A, BASE, 2, 4, fade=1), 4) == [0, 0, 0.5, 1]


def test_a_narrow_window_with_a_long_fade_does_not_reach_its_blend():
    torch.testing.assert_close(Window(A, BASE, 1, 3, fade=3).coefficients(5)[:, 1].sum(), torch.tensor(0.5).double())


@pytest.mark.parametrize("steps", range(1, 30))
@pytest.mark.parametrize("fade", [0, 1, 3])
def test_coefficients_sum_to_1_and_what_has_no_part_is_exactly_0(steps, fade):
    table = Window(Schedule.even([Blend(NAMES, (0.3, 0.7), 1.4)]), B, 2, 7, fade).coefficients(steps)
    torch.testing.assert_close(table.sum(1), torch.ones(steps, dtype=torch.float64))
    outside = [step for step in range(steps) if not 2 <= step < 7]
    assert torch.equal(table[outside], B.coefficients(steps)[outside])


def test_windows_follow_one_another():
    late = Window(B, BASE, 2, 4)
    assert Window(A, late, 0, 2).coefficients(5).tolist() == [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2 + [[1, 0, 0]]


def test_the_dial_and_the_cut_act_on_both_blends():
    window = Window(A, B, 0, 2).aligned(0.5).cut(0.75)
    assert window.coefficients(4).tolist() == [[0.5, 0.5, 0]] * 2 + [[0.5, 0, 0.5], [1, 0, 0]]


def test_a_window_reads_as_a_person_says_it():
    window = Window(A, BASE, 4, 6, fade=1)
    assert window.formula() == f"steps 4 to 5, fade 1: {A.formula()}; else: {BASE.formula()}"
    assert "which a run of 4 steps does not reach" in window.formula(4) and "reach" not in window.formula(5)


@pytest.mark.parametrize(("start", "end", "fade"), [(2, 2, 0), (3, 1, 0), (-1, 2, 0), (0, 2, -1)])
def test_what_is_no_window_is_refused(start, end, fade):
    with pytest.raises(BlendError, match=r"expected (a start|0 or more)"):
        Window(A, BASE, start, end, fade)


def test_blends_of_different_bases_are_refused():
    with pytest.raises(BlendError, match="different bases"):
        Window(A, Schedule.even([Blend(("c",), (1.0,))]), 0, 2)
