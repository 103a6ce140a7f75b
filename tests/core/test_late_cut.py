"""The late cut: after a share of a run's steps the base alone, in the table of coefficients and in every estimator."""

from fractions import Fraction
from math import ceil

import pytest
import torch
from diffusion_blend.blend_core import EVALUATIONS, Blend, BlendError, Schedule
from diffusion_blend.blend_core.estimators import exact, stratified
from diffusion_blend.blend_core.plan import cut, kept_steps
from diffusion_blend.blend_core.regions import painted

from .test_control_variates import run
from .worlds import normal

NAMES = ("a", "b")
HALF, BEYOND = Blend(NAMES, (0.5, 0.5)), Blend(NAMES, (0.5, 0.5), alignment=1.4)
SIGNED = ("exact", "merged", "budget")  # those that take coefficients below 0
SEEDS = [11, 12, 13]
STEPS, KEPT = 20, 18


@pytest.mark.parametrize("steps", range(1, 61))
def test_a_step_is_kept_where_it_begins_before_the_share_for_every_hundredth(steps):
    for percent in range(101):
        expected = ceil(Fraction(percent, 100) * steps)
        for until in (percent / 100, percent * 0.01, sum([0.01] * percent)):  # the last two are off by float rounding
            assert kept_steps(min(until, 1.0), steps) == expected


@pytest.mark.parametrize("steps", range(1, 61))
def test_a_share_that_is_a_whole_number_of_steps_keeps_so_many(steps):
    assert [kept_steps(kept / steps, steps) for kept in range(steps + 1)] == list(range(steps + 1))


def test_nine_tenths_of_twenty_steps_leave_the_last_two_to_the_base():
    table = Schedule.even([HALF]).cut(0.9).coefficients(STEPS)
    assert table[:KEPT].tolist() == [[0, 0.5, 0.5]] * KEPT
    assert table[KEPT:].tolist() == [[1, 0, 0]] * 2


def test_until_1_changes_nothing_bit_for_bit():
    schedule = Schedule.even([HALF, BEYOND], "smooth")
    assert torch.equal(schedule.cut(1).coefficients(17), schedule.coefficients(17))
    coefficients = BEYOND.coefficients
    assert cut(coefficients, 17, 1) is coefficients
    assert schedule.cut(1).formula() == schedule.formula()


def test_until_0_is_the_base_throughout():
    assert Schedule.even([HALF]).cut(0).coefficients(3).tolist() == [[1, 0, 0]] * 3


def test_of_two_cuts_the_earlier_counts_and_the_dial_keeps_it():
    schedule = Schedule.even([HALF]).cut(0.8).cut(0.9).aligned(1.4)
    assert schedule.until == 0.8
    assert torch.equal(schedule.coefficients(10), Schedule.even([BEYOND]).cut(0.8).coefficients(10))


@pytest.mark.parametrize("until", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_is_no_share_of_a_run_is_refused(until):
    for act in (lambda: Schedule.even([HALF]).cut(until), lambda: cut((0, 1), 4, until)):
        with pytest.raises(BlendError, match="expected a share of the run from 0"):
            act()


def test_the_formula_says_where_the_base_is_alone():
    schedule = Schedule.even([HALF]).cut(0.9)
    assert str(schedule) == "0.5 a + 0.5 b; the base alone after 90% of the steps"
    assert schedule.describe().splitlines()[0] == str(schedule)
    assert schedule.describe().splitlines()[1:] == HALF.describe().splitlines()[1:]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_cut_steps_are_the_base_exactly_at_one_evaluation_whatever_came_before(name):
    predictions = normal(STEPS, 4, len(SEEDS), 5, seed=2)  # they move at every step; variant 3 is the soup
    for blend in [HALF, BEYOND] if name in SIGNED else [HALF]:
        plan = EVALUATIONS[name](cut(blend.coefficients, STEPS, 0.9), STEPS, SEEDS)
        asked = [asked_at(plan, predictions[step], step) for step in range(STEPS)]
        for step in range(KEPT, STEPS):
            estimate, variants = asked[step]
            assert torch.equal(estimate, predictions[step, 0]) and variants == [[0] * len(SEEDS)]


def asked_at(plan, predictions, step):
    """The estimate of a step and the variants that it asked for. predictions: (variants, batch, d)."""
    asked = []

    def evaluate(variants):
        asked.extend(variants.tolist())
        return predictions[variants, torch.arange(variants.shape[1])]

    return plan(evaluate, step), asked


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_kept_steps_are_those_of_a_run_without_a_cut(name):
    """Up to the spare evaluations of a budget, which may go to other steps where it ends earlier."""
    options = {"evaluations": 1.0} if name == "budget" else {}
    predictions = normal(1, 4, len(SEEDS), 5, seed=3).expand(STEPS, -1, -1, -1)
    whole, part = (
        run(EVALUATIONS[name](cut(HALF.coefficients, STEPS, until), STEPS, SEEDS, **options), predictions)
        for until in (1, 0.9)
    )
    torch.testing.assert_close(part[:KEPT], whole[:KEPT], rtol=0, atol=1e-12)


def test_a_full_budget_is_exact_with_a_cut_and_never_asks_for_the_base_before_it():
    predictions = normal(STEPS, 3, len(SEEDS), 5, seed=4)
    table = cut(HALF.coefficients, STEPS, 0.9)
    plan = EVALUATIONS["budget"](table, STEPS, SEEDS, evaluations=2.0)
    torch.testing.assert_close(run(plan, predictions), run(exact(table, STEPS, SEEDS), predictions))
    assert plan.bases.tolist() == [1, 2]
    assert plan.evaluations_per_step == pytest.approx((2 * KEPT + 2) / STEPS)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_stratified_keeps_every_count_within_one_of_its_share_and_takes_the_base_in_cut_steps(count):
    for trial in range(30):
        shares = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(trial)) ** 3
        table = cut((0.0, *(shares / shares.sum()).tolist()), STEPS, 0.85)
        chosen = stratified(table, STEPS, [trial]).variants[:, 0, 0]
        counts = torch.nn.functional.one_hot(chosen, count + 1).cumsum(0)
        assert (counts - table.cumsum(0)).abs().max() < 1
        assert chosen[17:].tolist() == [0, 0, 0] and 0 not in chosen[:17]


def test_a_part_of_a_job_is_cut_by_the_steps_of_the_whole_job():
    plan = exact(cut(HALF.coefficients, STEPS, 0.9), STEPS, SEEDS).part(15, 5)
    assert [len(plan.active(step)[1]) for step in range(5)] == [2, 2, 2, 1, 1]


def test_a_region_whose_layers_are_all_cut_costs_one_evaluation_in_the_cut_steps():
    layers = [Schedule.even([blend]).cut(0.9).coefficients(STEPS) for blend in (HALF, BEYOND)]
    plan = painted(layers, [torch.tensor([[0.0, 1.0]])], (1, 2), 1)
    predictions = normal(3, 1, 4, 1, 2, seed=5)
    assert torch.equal(plan(lambda v: predictions[v[:, 0]], KEPT), predictions[0])
    assert plan.active(KEPT)[0].tolist() == [[0]] and len(plan.active(KEPT - 1)[0]) == 3
