"""Schedules: coefficients as functions of progress, and what the estimators make of them."""

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError, Schedule
from diffusion_blend.blend_core.estimators import exact, random, stratified
from diffusion_blend.blend_core.schedules import CURVES, parse_positions

from .worlds import gaussian, normal, sample, schedule, start

NAMES = ("a", "b")
FIRST, SECOND = Blend(NAMES, (1.0, 0.0)), Blend(NAMES, (0.0, 1.0), alignment=1.5)


def test_a_linear_schedule_goes_from_the_first_to_the_last():
    table = Schedule.even([FIRST, SECOND]).coefficients(5)
    assert table[0].tolist() == list(FIRST.coefficients) and table[-1].tolist() == list(SECOND.coefficients)
    assert table[2].tolist() == pytest.approx([-0.25, 0.5, 0.75])
    torch.testing.assert_close(table.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_a_schedule_of_equal_keyframes_is_that_blend_bit_for_bit(curve):
    blend = Blend(NAMES, (0.3, 0.7), alignment=0.7)
    table = Schedule.even([blend] * 3, curve).coefficients(11)
    assert torch.equal(table, torch.tensor(blend.coefficients, dtype=torch.float64).expand(11, -1))


def test_a_step_stays_until_the_next_keyframe():
    table = Schedule((0, 0.5), (FIRST, SECOND), "step").coefficients(9)
    assert table[:, 1].tolist() == [1.0] * 4 + [0.0] * 5


def test_a_smooth_curve_starts_and_ends_slowly():
    linear, smooth = (Schedule.even([FIRST, SECOND], curve).coefficients(9)[:, 2] for curve in ("linear", "smooth"))
    assert smooth[1] < linear[1] and smooth[7] > linear[7] and smooth[4] == pytest.approx(linear[4].item())


def test_before_the_first_and_after_the_last_keyframe_coefficients_stay():
    table = Schedule((0.25, 0.75), (FIRST, SECOND)).coefficients(9)
    assert torch.equal(table[0], table[2]) and torch.equal(table[6], table[8])
    assert not torch.equal(table[2], table[3])


def test_one_step_takes_the_first_keyframe():
    assert Schedule.even([FIRST, SECOND]).coefficients(1).tolist() == [list(FIRST.coefficients)]


def test_aligned_scales_every_keyframe():
    table = Schedule.even([FIRST, SECOND]).aligned(0.5).coefficients(4)
    expected = Schedule.even([FIRST, SECOND]).coefficients(4)[:, 1:] / 2
    torch.testing.assert_close(table[:, 1:], expected)


@pytest.mark.parametrize(
    ("positions", "blends", "curve", "message"),
    [
        ((0, 1), (FIRST,), "linear", "2 positions .* came for 1 blends"),
        ((0.5, 0.5), (FIRST, SECOND), "linear", "each above the one before"),
        ((0, 1.5), (FIRST, SECOND), "linear", "from 0"),
        ((0, 1), (FIRST, SECOND), "wild", "expected one of linear, smooth, step"),
        ((0, 1), (FIRST, Blend(("a",), (1.0,))), "linear", "different bases"),
    ],
)
def test_schedules_that_cannot_be_are_refused(positions, blends, curve, message):
    with pytest.raises(BlendError, match=message):
        Schedule(positions, blends, curve)


def test_positions_are_read_from_text():
    assert parse_positions("0, 50%; 1", 3) == (0, 0.5, 1)
    assert parse_positions("  ", 3) is None
    with pytest.raises(BlendError, match="not numbers"):
        parse_positions("0, late", 2)
    with pytest.raises(BlendError, match="3 positions came for 2 blends"):
        parse_positions("0, 0.5, 1", 2)


def test_exact_evaluates_only_what_counts_at_a_step():
    plan = exact(Schedule((0, 0.5), (FIRST, Blend(NAMES, (0.0, 1.0))), "step").coefficients(4), 4, [0, 1])
    seen = []

    def evaluate(variants):
        seen.append(variants[:, 0].tolist())
        return torch.ones(len(variants), 2, 3)

    for step in range(4):
        plan(evaluate, step)
    assert seen == [[1], [1], [2], [2]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_stratified_counts_stay_within_one_of_their_share_under_a_schedule(count):
    generator = torch.Generator().manual_seed(count)
    for trial in range(30):
        table = torch.rand(40, count, dtype=torch.float64, generator=generator) ** 3
        table = table / table.sum(1, keepdim=True)
        chosen = stratified(table, 40, [trial]).variants[:, 0, 0]
        counts = torch.nn.functional.one_hot(chosen, count).cumsum(0)
        assert (counts - table.cumsum(0)).abs().max() < 1


def test_sampled_frequencies_follow_the_schedule():
    table = Schedule.even([Blend(NAMES, (1.0, 0.0)), Blend(NAMES, (0.0, 1.0))]).coefficients(5)
    chosen = random(table, 5, range(2000)).variants[:, 0]
    shares = (chosen == 2).double().mean(1)
    bound = 5 * (0.25 / 2000) ** 0.5
    assert bool(((shares - table[:, 2]).abs() <= bound).all()) and shares[0] == 0 and shares[-1] == 1


def test_coefficients_below_0_are_refused_wherever_they_come():
    table = Schedule.even([FIRST, SECOND]).coefficients(4)
    for estimator in (random, stratified):
        with pytest.raises(BlendError, match="none below 0"):
            estimator(table, 4, [0])


def test_a_scheduled_run_of_linear_rewards_is_the_run_of_the_moving_tilt():
    # The blend of linear tilts is the tilt of the blended reward at every step, so the scheduled run must equal one
    # whose denoiser is the tilted world itself.
    base, steps = gaussian(), 12
    directions, kl_weight = [normal(6, seed=s) for s in (3, 4)], 2.0
    worlds = [base, *(base.tilted_linear(d, kl_weight) for d in directions)]
    table = Schedule.even([FIRST, SECOND], "smooth").coefficients(steps)
    plan = exact(table, steps, [0] * 8)

    def blended(x, sigma, step):
        return plan(lambda variants: torch.stack([worlds[v].denoised(x, sigma) for v in variants[:, 0].tolist()]), step)

    def tilted(x, sigma, step):
        direction = sum(c * d for c, d in zip(table[step, 1:], directions, strict=True))
        return base.tilted_linear(direction, kl_weight).denoised(x, sigma)

    x, sigmas = start(8, 6), schedule(steps)
    torch.testing.assert_close(
        sample(blended, x, sigmas, eta=1.0), sample(tilted, x, sigmas, eta=1.0), atol=1e-10, rtol=0
    )
