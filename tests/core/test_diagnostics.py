"""Diagnostics against closed forms: the Jensen gap of a linear reward on a Gaussian, and predictions made by hand."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError
from diffusion_blend.blend_core.diagnostics import (
    MOST_VARIATION,
    Diagnosis,
    disagreement,
    gap_at,
    jensen_gap,
    posterior_samples,
    probed_steps,
    sole_variant,
)
from diffusion_blend.blend_core.gaussian import reverse_step
from diffusion_blend.blend_core.rewards import Draws, scored_ways

from .worlds import FAMILIES, gaussian, normal, seeded, signal

SIZE = 6
HALF = (0.0, 0.5, 0.5)


def posterior(world, x, sigma, family):
    """(mean, covariance) of x0 given x, for one Gaussian."""
    a, covariance = signal(sigma, family), world.covariances[0]
    gain = a * covariance @ torch.linalg.inv(a**2 * covariance + sigma**2 * torch.eye(world.size, dtype=x.dtype))
    return world.denoised(x, sigma, family), covariance - a * gain @ covariance


def known_scores(variance, shape, seed=3):
    """Scores of a linear reward on a Gaussian posterior: normal, of this variance."""
    return 7.0 + math.sqrt(variance) * normal(*shape, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0.01, 0.3, 1.0])
def test_the_gap_of_a_linear_reward_on_a_gaussian_is_half_the_tilts_variance(variance):
    kl_weight = 0.4
    gap, error, variation = jensen_gap(known_scores(variance * kl_weight**2, (4000,)), kl_weight)
    assert error < 0.2 * variance / 2 + 0.03
    assert abs(gap - variance / 2) < 4 * error
    assert variation.item() == pytest.approx(math.sqrt(math.expm1(variance)), rel=0.1)


def test_the_stated_error_is_the_spread_over_repetitions():
    gap, error, _ = jensen_gap(known_scores(0.4, (24, 4000)), 1.0)
    assert error.square().mean().sqrt().item() == pytest.approx(gap.std().item(), rel=0.15)
    outside = ((gap - 0.2).abs() > 2 * error).double().mean()  # 5% for a normal estimate; the log of a mean is skewed
    assert outside < 0.15


def test_the_gap_stands_extreme_tilts_and_does_not_see_a_constant():
    scores = known_scores(1.0, (16, 3))
    gap, _, variation = jensen_gap(scores, 1e-6)
    assert torch.isfinite(gap).all() and (gap > 1e5).all()
    assert (variation <= 4.0 + 1e-9).all()  # the square root of n: one sample has all the weight
    moved, _, _ = jensen_gap(scores + 1e3, 0.5)
    torch.testing.assert_close(moved, jensen_gap(scores, 0.5)[0], rtol=1e-9, atol=1e-9)


def levels(steps, family):
    """Falling noise levels from 1.5 ("flow": 0.7) to 0."""
    return [*torch.linspace(1.5 if family == "ve" else 0.7, 0.02, steps, dtype=torch.float64).tolist(), 0.0]


def covariance_of_run(world, sigmas, family):
    """The covariance with which the ancestral run from a fixed state draws x0; the Gaussian's denoiser is affine."""
    unit = torch.eye(world.size, dtype=torch.float64)
    spread = torch.zeros_like(unit)
    for now, after in pairwise(sigmas):
        slope = (world.denoised(unit, now, family) - world.denoised(0 * unit, now, family)).T  # of D in x
        mean, up = reverse_step(unit, slope, now, after, 1.0, family)
        spread = mean @ spread @ mean.T + up**2 * unit
    return spread


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ancestral_run_draws_from_the_posterior(family):
    world, sigmas, n = gaussian(SIZE, seed=5), levels(60, family), 6000
    x = world.draw(1, seed=8) * signal(sigmas[0], family) + sigmas[0] * normal(1, SIZE, seed=9)
    mean, covariance = posterior(world, x, sigmas[0], family)
    generator = seeded(1)
    drawn = posterior_samples(
        lambda x, k: world.denoised(x, sigmas[k], family), x.expand(n, -1), sigmas, 0, family,
        lambda: torch.randn(n, SIZE, dtype=torch.float64, generator=generator),
    )  # fmt: skip
    assert ((drawn.mean(0) - mean[0]).abs() < 5 * (covariance.diagonal() / n).sqrt()).all()
    of_run = covariance_of_run(world, sigmas, family)
    assert (drawn.T.cov() - of_run).norm() < 0.05 * of_run.norm()
    misses = [(covariance_of_run(world, levels(n, family), family) - covariance).norm() for n in (60, 120, 240)]
    assert misses[0] < 0.15 * covariance.norm()
    assert misses[1] < 0.6 * misses[0] and misses[2] < 0.6 * misses[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_probe_from_x_t_finds_the_closed_form(family):
    world, sigmas, kl_weight, n, states = gaussian(SIZE, seed=2), levels(300, family), 1.0, 3000, 2
    direction = normal(SIZE, seed=4)
    noise = sigmas[0] * normal(states, SIZE, seed=7)
    x = (signal(sigmas[0], family) * world.draw(states, seed=6) + noise).repeat(n, 1)
    _, covariance = posterior(world, x, sigmas[0], family)
    expected = (direction @ covariance @ direction / (2 * kl_weight**2)).item()
    generator = seeded(9)
    drawn = posterior_samples(
        lambda x, k: world.denoised(x, sigmas[k], family), x, sigmas, 0, family,
        lambda: torch.randn(x.shape, dtype=torch.float64, generator=generator),
    )  # fmt: skip
    gap = gap_at(0, sigmas[0], "linear", (drawn @ direction).view(n, states), kl_weight, (0.0, 1.0))
    assert expected > 0.2 and gap.standard_error < 0.1 * expected
    assert abs(gap.gap - expected) < 4 * gap.standard_error
    # exp of a normal tilt varies as much as its mean where the tilt's variance is log 2
    at_least = math.sqrt(2 * expected * kl_weight**2 / math.log(2))
    assert gap.least_kl_weight == pytest.approx(at_least, rel=0.1)


def test_disagreement_of_known_predictions():
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    denoised = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64)
    step = disagreement(x, denoised, (0.0, 0.5, 0.5), 4, 2.0)
    assert (step.step, step.sigma) == (4, 2.0)
    assert step.bends == pytest.approx((0.2, 0.4))  # |x - D_0| is 5
    assert step.cosines == pytest.approx((0.0,))
    assert step.bend == pytest.approx(math.hypot(0.5, 1.0) / 5)
    assert step.reach == pytest.approx(math.hypot(0.5, 1.0) / 2)


def test_disagreement_of_gaussian_worlds_is_the_closed_form():
    # A linear reward shifts the mean by S a / alpha, so D_i - D_0 = (I - S (S + sigma^2)^-1) S a / alpha at every x.
    world, sigma, kl_weight = gaussian(SIZE, seed=1), 0.7, 2.0
    x = normal(5, SIZE, seed=2)
    directions = normal(3, SIZE, seed=3)
    bases = [world, *(world.tilted_linear(a, kl_weight) for a in directions)]
    step = disagreement(x, torch.stack([basis.denoised(x, sigma) for basis in bases]), (0.1, 0.3, 0.3, 0.3), 0, sigma)
    covariance, unit = world.covariances[0], torch.eye(SIZE, dtype=torch.float64)
    pulls = (unit - covariance @ torch.linalg.inv(covariance + sigma**2 * unit)) @ covariance @ directions.T / kl_weight
    length = (x - world.denoised(x, sigma)).norm(dim=1)
    assert step.bends == pytest.approx([(pulls[:, i].norm() / length).mean().item() for i in range(3)])
    units = pulls / pulls.norm(dim=0)
    assert step.cosines == pytest.approx([(units[:, i] @ units[:, j]).item() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert step.bend == pytest.approx(((0.3 * pulls.sum(1)).norm() / length).mean().item())


def test_a_basis_that_is_the_base_has_no_pull_and_no_direction():
    x, base = normal(2, 3, seed=1), normal(2, 3, seed=2)
    step = disagreement(x, torch.stack([base, base, base + 1]), HALF, 0, 1.0)
    assert step.bends[0] == 0 and step.cosines == (0.0,)
    assert json.loads(json.dumps(step.reach)) == pytest.approx(0.5)


def test_the_gap_of_merged_is_relative_to_the_blends_way_from_the_base():
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    denoised = torch.tensor([[[1.0, 1.0]], [[2.0, 1.0]], [[1.0, 3.0]]], dtype=torch.float64)
    at = torch.tensor([[1.5, 2.3]], dtype=torch.float64)  # the blend is (1.5, 2)
    step = disagreement(x, denoised, HALF, 0, 1.0, at)
    assert step.merged == pytest.approx(0.3 / math.hypot(0.5, 1))
    assert step.merged_cosine == pytest.approx(1 / math.hypot(0.5, 1))  # (0, 0.3) beside (0.5, 1)
    assert disagreement(x, denoised, HALF, 0, 1.0).merged is None


@pytest.mark.parametrize(
    ("gaps", "cosine", "said"),
    [
        ((0.02, 0.04, 0.01), 0.9, "take merged"),
        ((0.02, 0.31, 0.4), 0.9, "31% of the blend's way from the base (at step 2, where merged goes further"),
        ((0.02, 0.31, 0.4), -0.9, "merged goes less far from the base, cosine -0.90"),
        ((0.02, 0.31, 0.4), 0.1, "merged goes sideways, cosine +0.10"),
    ],
)
def test_the_diagnosis_says_whether_merged_would_do_and_leaves_steps_of_the_base_out(gaps, cosine, said):
    diagnosis = diagnosed((0.0, 0.5, 0.5))
    assert diagnosis.way == "" and "merged - exact" not in diagnosis.rows()[0]
    measured = [replace(step, merged_cosine=cosine) for step in diagnosis.steps]
    *blended, last = (replace(step, merged=gap) for step, gap in zip(measured, gaps, strict=True))
    cut = replace(diagnosis, steps=(*blended, replace(last, coefficients=(1.0, 0.0, 0.0))))
    assert said in cut.way and cut.way in cut.describe() and json.loads(cut.to_json())["way"] == cut.way
    assert [row[-2] for row in cut.rows()] == ["merged - exact", *(f"{100 * gap:.1f}%" for gap in gaps)]
    assert [row[-1] for row in cut.rows()] == ["its cosine", *[f"{cosine:+.2f}"] * 3]


def test_steps_that_have_no_merged_prediction_leave_their_place_in_the_table_empty():
    first, *others = diagnosed(HALF).steps
    mixed = replace(diagnosed(HALF), steps=(replace(first, merged=0.1, merged_cosine=0.2), *others))
    assert [row[-2:] for row in mixed.rows()[1:]] == [["10.0%", "+0.20"], ["-", "-"], ["-", "-"]]
    assert "sideways" in mixed.describe()


def test_a_step_of_the_base_alone_raises_no_doubt():
    diagnosis = diagnosed((0.0, 0.5, 0.5), pulls=((0.9, 0.0), (-0.9, 0.1)))
    assert diagnosis.verdict.level == "doubtful" and "1-3" in str(diagnosis.verdict)
    steps = (*diagnosis.steps[:1], *(replace(step, coefficients=(1.0, 0.0, 0.0)) for step in diagnosis.steps[1:]))
    ended = str(replace(diagnosis, steps=steps).verdict)
    assert "At step 1 " in ended and "1-3" not in ended


# --- verdicts


def diagnosed(coefficients, kl_weights=None, pulls=((0.1, 0.0), (0.0, 0.1)), variance=1.0):
    """Three steps at |x - D_0| = 1; kl_weights: where given, a probe of each basis of scores of this variance."""
    names = ("calm", "vivid")[: len(pulls)]
    x = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    denoised = torch.tensor([[[0.0, 0.0]], *([list(pull)] for pull in pulls)], dtype=torch.float64)
    steps = tuple(disagreement(x, denoised, coefficients, k, 1.0) for k in range(3))
    gaps = tuple(
        gap_at(0, 1.0, name, known_scores(variance, (400, 1)), alpha, coefficients)
        for name, alpha in zip(names, kl_weights or (), strict=False)
    )
    return Diagnosis(names, "formula", steps, gaps, 9, 6)


@pytest.mark.parametrize(
    "coefficients", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), Blend(("calm", "vivid"), (0.3, 0.7), 0).coefficients]
)
def test_one_hot_and_alignment_0_are_exact_whatever_the_gap(coefficients):
    verdict = diagnosed(coefficients, kl_weights=(0.01, 0.01)).verdict
    assert verdict.level == "exact" and "nothing is approximated" in str(verdict)


def test_a_single_basis_is_exact_as_trained_and_at_no_other_alignment():
    one = ((0.1, 0.0),)
    assert diagnosed((0.0, 1.0), pulls=one).verdict.level == "exact"
    assert diagnosed((0.5, 0.5), pulls=one).verdict.level == "fair"
    assert diagnosed((-0.5, 1.5), pulls=one).verdict.level == "doubtful"


def test_a_schedule_that_changes_is_never_exact():
    assert sole_variant([(0.0, 1.0, 0.0)] * 3) == 1
    assert sole_variant([(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]) is None


@pytest.mark.slow
def test_the_warning_comes_as_alpha_shrinks_and_goes_as_it_grows():
    # A normal tilt varies as much as its mean at variance log 2, so the border is alpha = 1 / sqrt(log 2) = 1.20.
    verdicts = {alpha: diagnosed(HALF, kl_weights=(alpha, 5.0)).verdict.level for alpha in (0.3, 1.0, 1.5, 5.0)}
    assert verdicts == {0.3: "doubtful", 1.0: "doubtful", 1.5: "fair", 5.0: "fair"}
    doubtful = diagnosed(HALF, kl_weights=(0.3, 5.0))
    assert doubtful.gaps[0].least_kl_weight == pytest.approx(1.2, rel=0.1)
    text = str(doubtful.verdict)
    assert "calm: the KL weight 0.3 is too small" in text and "vivid:" not in text


def test_the_warning_comes_as_alignment_grows():
    def at(alignment):
        coefficients = Blend(("calm", "vivid"), (0.5, 0.5), alignment).coefficients
        return diagnosed(coefficients, kl_weights=(2.0, 2.0))

    assert at(1.0).verdict.level == "fair" and at(1.4).verdict.level == "fair"
    doubtful = at(2.0)  # alpha 1 is asked for; the blend goes 1.4 times as far as either basis
    assert doubtful.verdict.level == "doubtful"
    assert doubtful.gaps[0].kl_weight == pytest.approx(1.0) and doubtful.gaps[0].variation > MOST_VARIATION
    assert any("1.4 times as far" in reason for reason in doubtful.verdict.reasons)
    assert at(0.5).gaps[0].kl_weight == pytest.approx(2.0)  # no weaker than the bases that are blended were trained


def test_strong_and_opposed_pulls_are_named():
    strong = diagnosed(HALF, pulls=((0.8, 0.0), (0.0, 0.1))).verdict
    assert strong.level == "doubtful" and "At steps 1-3 calm changes the base's direction by up to 80%" in str(strong)
    opposed = diagnosed(HALF, pulls=((0.1, 0.0), (-0.1, 0.01))).verdict
    assert opposed.level == "doubtful" and "pull against each other" in str(opposed)


def test_few_samples_that_count_are_named():
    diagnosis = diagnosed(HALF, kl_weights=(0.02,))
    assert diagnosis.gaps[0].counting < 4
    assert "lower bound" in str(diagnosis.verdict)


def test_steps_are_listed_in_runs():
    diagnosis = diagnosed(HALF)
    bent = [replace(step, step=k, bends=(0.9, 0.1)) for k, step in zip((0, 1, 5), diagnosis.steps, strict=True)]
    assert "At steps 1-2, 6 calm" in str(replace(diagnosis, steps=tuple(bent)).verdict)


def test_probed_steps_are_even_and_leave_out_the_last():
    assert probed_steps(20, 3) == [0, 6, 13]
    assert probed_steps(2, 5) == [0, 1]


def test_a_diagnosis_goes_to_json_and_to_text():
    diagnosis = diagnosed(HALF, kl_weights=(0.3, 5.0))
    read = json.loads(diagnosis.to_json())
    assert read["verdict"]["level"] == "doubtful" and read["pairs"] == [["calm", "vivid"]]
    assert read["steps"][1]["bends"] == pytest.approx([0.1, 0.1])
    assert read["gaps"][0]["gap"] == diagnosis.gaps[0].gap
    text = diagnosis.describe()
    assert "Verdict: doubtful" in text and "cos calm, vivid" in text and "9 evaluations per image" in text


@pytest.mark.parametrize(("scores", "kl_weight", "message"), [(2, 1.0, "expected 3 or more"), (5, 0.0, "above 0")])
def test_probes_that_mean_nothing_are_refused(scores, kl_weight, message):
    with pytest.raises(BlendError, match=message):
        jensen_gap(torch.zeros(scores, 1), kl_weight)


# --- merged or exact, by rewards


def both_ways(difference, prompts=4, seeds=16, spread=0.1, seed=5):
    """Scores (prompts, seeds) by exact and by merged: the same images' noise in both, and a difference that varies."""
    merged = 20 + normal(prompts, seeds, seed=seed)
    return merged + difference + spread * normal(prompts, seeds, seed=seed + 1), merged


def test_paired_scores_find_a_difference_that_is_small_beside_the_images_own():
    exact, merged = both_ways(0.2)
    (comparison,) = scored_ways({"calm": exact}, {"calm": merged}, [1.0])
    assert comparison.pairs == 64 and comparison.difference.mean == pytest.approx((exact - merged).mean().item())
    assert comparison.exact - comparison.merged == pytest.approx(comparison.difference.mean)
    assert comparison.difference.low < 0.2 < comparison.difference.high
    assert comparison.difference.high - comparison.difference.low < 0.2  # 64 pairs of images whose own spread is 1
    assert comparison.better == "exact"


def test_the_interval_is_that_of_evaluations():
    exact, merged = both_ways(0.2)
    (comparison,) = scored_ways({"calm": exact}, {"calm": merged}, [1.0])
    assert comparison.difference == Draws(4, 16).mean((exact - merged).numpy())


def test_of_several_rewards_the_weighted_one_comes_last_and_decides():
    calm, vivid = both_ways(0.3), both_ways(-0.1, seed=8)
    scores = scored_ways({"calm": calm[0], "vivid": vivid[0]}, {"calm": calm[1], "vivid": vivid[1]}, [0.25, 0.75])
    assert [score.name for score in scores] == ["calm", "vivid", "the weighted reward"]
    assert [score.better for score in scores[:2]] == ["exact", "merged"]
    mean = 0.25 * scores[0].difference.mean + 0.75 * scores[1].difference.mean
    assert scores[2].difference.mean == pytest.approx(mean)
    text = measured(0.3, scores).way
    for score in scores[:2]:
        assert f"{score.name}: {score.better} scores higher by {abs(score.difference.mean):.3g} (" in text
    assert text.splitlines()[-1].startswith("By the weighted reward these images show no difference: take merged")


def measured(gap, scores=()):
    """A diagnosis whose merged predictions are `gap` of the way from the exact ones at every step."""
    diagnosis = diagnosed(HALF)
    steps = tuple(replace(step, merged=gap, merged_cosine=0.0) for step in diagnosis.steps)
    return replace(diagnosis, steps=steps, scores=scores)


@pytest.mark.parametrize(
    ("difference", "gap", "said"),
    [
        (0.2, 0.3, "Take exact: by calm it is better than merged"),
        (-0.2, 0.3, "Take merged: by calm it is better than exact, and it costs one evaluation"),
        (0.0, 0.3, "take merged, it costs one evaluation per step. More images narrow the interval"),
        (0.2, 0.01, "Take exact"),  # what was scored goes before what was measured in steps
    ],
)
def test_the_interval_decides_which_way_to_take(difference, gap, said):
    exact, merged = both_ways(difference)
    diagnosis = measured(gap, scored_ways({"calm": exact}, {"calm": merged}, [1.0]))
    assert said in diagnosis.way.splitlines()[-1] and diagnosis.way in diagnosis.describe()
    score = diagnosis.scores[0]
    low, high = score.difference.low, score.difference.high
    ends = {0.2: f"({low:.3g} to {high:.3g}", 0.0: f": {low:+.3g} to {high:+.3g}", -0.2: f"({-high:.3g} to {-low:.3g}"}
    assert ends[difference] in diagnosis.way and "64 pairs of images" in diagnosis.way
    assert diagnosis.score_rows()[1][0] == "calm" and f"{score.exact:.4g}" in diagnosis.describe()
    assert json.loads(diagnosis.to_json())["scores"][0]["difference"] == pytest.approx(vars(score.difference))


def test_images_that_are_the_same_show_no_difference():
    _, merged = both_ways(0.0)
    (comparison,) = scored_ways({"calm": merged}, {"calm": merged}, [1.0])
    assert comparison.better == "" and (comparison.difference.low, comparison.difference.high) == (0, 0)


def test_too_few_pairs_for_an_interval_are_refused():
    with pytest.raises(BlendError, match="7 images of each way are to be scored, expected 8 or more"):
        scored_ways({"calm": torch.zeros(1, 7)}, {"calm": torch.zeros(1, 7)}, [1.0])
