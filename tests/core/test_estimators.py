"""Which variants a run evaluates: exact, drawn at random, or in their share at every prefix."""

import math
import random as python_random

import pytest
import torch
from diffusion_blend.blend_core import EVALUATIONS, Blend, BlendError, Plan
from diffusion_blend.blend_core.estimators import (
    FORMER,
    budget,
    check_evaluation,
    exact,
    image_seed,
    merged,
    random,
    stratified,
)
from diffusion_blend.blend_core.parameterization import State
from diffusion_blend.blend_core.plan import Call, Job, describe_choices

from .worlds import FAMILIES, mixture, normal, sample, schedule, start

ONE_PER_STEP = [random, stratified]
SHARES = (0.1, 0.2, 0.3, 0.4)


def shares_of(count, generator):
    """Random weights with a zero now and then, and now and then in simple ratios, where ties are."""
    weights = torch.rand(count, dtype=torch.float64, generator=generator)
    if torch.rand(1, generator=generator) < 0.4:
        weights = torch.randint(0, 4, (count,), generator=generator).double()
        weights[0] += 1
    return (weights / weights.sum()).tolist()


def choices(plan):
    """(steps, batch) of a plan of one variant per step."""
    assert plan.variants.shape[1] == 1
    assert bool((plan.weights == 1).all()) and plan.weights.shape == (len(plan.variants), 1)
    return plan.variants[:, 0]


def frequencies(chosen, variants):
    return torch.stack([(chosen == i).double().mean() for i in range(variants)])


# --- exact


def test_exact_evaluates_every_variant_that_counts_at_every_step():
    plan = exact((0.0, 0.5, -0.5, 1.0), steps=3, seeds=[7, 8])
    assert plan.variants.shape == (3, 3, 2)
    assert plan.variants[:, :, 0].tolist() == plan.variants[:, :, 1].tolist() == [[1, 2, 3]] * 3
    assert plan.weights.tolist() == [[0.5, -0.5, 1.0]] * 3
    assert plan.batch == 2


def test_exact_is_the_weighted_sum_of_the_predictions():
    predictions = normal(4, 2, 3, 5, seed=0)
    coefficients = Blend(("a", "b", "c"), (0.2, 0.5, 0.3), 1.6).coefficients
    blended = exact(coefficients, 2, [0, 1])(lambda variants: predictions[variants[:, 0]], 1)
    expected = sum(c * p for c, p in zip(coefficients, predictions, strict=True))
    torch.testing.assert_close(blended, expected, rtol=0, atol=1e-14)


def test_exact_of_a_one_hot_blend_is_that_basis_bit_for_bit():
    predictions = normal(3, 2, 5, seed=1)
    for i in range(3):
        one_hot = [float(i == j) for j in range(3)]
        assert torch.equal(exact(one_hot, 1, [0, 1])(lambda v: predictions[v[:, 0]], 0), predictions[i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictions_that_agree_blend_to_themselves_in_half_precision(dtype):
    prediction = normal(2, 50, seed=2).to(dtype)
    plan = exact((0.0, 1 / 3, 1 / 3, 1 / 3), 1, [0, 1])
    blended = plan(lambda variants: prediction.expand(3, 2, 50), 0)
    assert blended.dtype == dtype
    assert torch.equal(blended, prediction)


# --- sampled


def test_sampled_frequencies_are_the_coefficients():
    steps, images = 100, 300
    chosen = choices(random((*SHARES, 0.0), steps, range(images)))
    for c, frequency in zip((*SHARES, 0.0), frequencies(chosen, 5), strict=True):
        assert abs(frequency - c) <= 5 * math.sqrt(c * (1 - c) / (steps * images))  # 5 s.e.; a share of 0 never


def test_sampled_steps_are_independent_of_each_other():
    chosen = choices(random((0.3, 0.7), 2000, [11]))[:, 0].double()
    deviations = chosen - 0.7
    for lag in (1, 2, 3):
        correlation = (deviations[lag:] * deviations[:-lag]).mean() / 0.21
        assert abs(correlation) < 5 / math.sqrt(2000 - lag)


def test_the_mean_of_sampled_predictions_is_the_exact_one():
    predictions, seeds = normal(4, 1, 12, seed=3), range(4000)
    plan = random(SHARES, 1, seeds)
    drawn = plan(lambda variants: predictions[variants[0], 0][None], 0)  # (seeds, 12)
    expected = exact(SHARES, 1, [0])(lambda variants: predictions, 0)[0]
    standard_error = drawn.std(0) / math.sqrt(len(seeds))
    assert bool(((drawn.mean(0) - expected).abs() < 5 * standard_error).all())


# --- stratified


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_stratified_counts_stay_within_one_of_their_share_at_every_step(count):
    generator, steps = torch.Generator().manual_seed(count), 40
    times = torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    for trial in range(30):
        shares = shares_of(count, generator)
        chosen = choices(stratified(shares, steps, [trial]))[:, 0]
        counts = torch.nn.functional.one_hot(chosen, count).cumsum(0)
        assert (counts - times * torch.tensor(shares, dtype=torch.float64)).abs().max() < 1, shares


def test_stratified_never_takes_a_variant_without_a_share():
    chosen = choices(stratified((0.0, 0.5, 0.0, 0.5), 50, range(20)))
    assert set(chosen.flatten().tolist()) == {1, 3}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.9])
def test_every_step_of_two_stratified_variants_takes_each_with_its_probability(share):
    images, steps = 1200, 12
    chosen = choices(stratified((1 - share, share), steps, range(images)))
    standard_error = math.sqrt(share * (1 - share) / images)
    assert bool(((chosen.double().mean(1) - share).abs() < 5 * standard_error).all())


def test_the_start_offset_decorrelates_images():
    chosen = choices(stratified((0.5, 0.5), 10, [image_seed(0, i) for i in range(40)]))
    assert len({tuple(column) for column in chosen.T.tolist()}) == 2  # both phases of the alternation


# --- one per step, either way


@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_all_weight_on_one_variant_takes_only_that_one(estimator):
    for i in range(3):
        shares = [float(i == j) for j in range(3)]
        assert set(choices(estimator(shares, 20, range(5))).flatten().tolist()) == {i}


@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_a_seed_fixes_an_images_choices_whatever_the_batch(estimator):
    single_choices = choices(estimator(SHARES, 25, [42]))[:, 0]
    for seeds in ([42, 1], [1, 42], [9, 8, 42, 7]):
        assert torch.equal(choices(estimator(SHARES, 25, seeds))[:, seeds.index(42)], single_choices)
    assert torch.equal(choices(estimator(SHARES, 25, [42]))[:, 0], single_choices)


@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_other_seeds_choose_otherwise(estimator):
    plans = choices(estimator(SHARES, 25, [image_seed(0, i) for i in range(10)]))
    assert len({tuple(column) for column in plans.T.tolist()}) >= 9  # two equal by chance at most


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_the_choices_of_neighbours_are_uncorrelated(estimator):
    images, shares = 1000, (0.5, 0.5)
    first = choices(estimator(shares, 3, [image_seed(5, i) for i in range(images)])).double() - 0.5
    second = choices(estimator(shares, 3, [image_seed(5, i + 1) for i in range(images)])).double() - 0.5
    correlation = (first * second).mean(1) / 0.25
    assert bool((correlation.abs() < 5 / math.sqrt(images)).all())


def test_every_image_of_every_job_has_a_seed_of_its_own():
    seeds = {image_seed(seed, index) for seed in range(200) for index in range(50)}
    seeds |= {image_seed(seed, 0) for seed in (2**63, 2**64 - 1, -1)}
    assert len(seeds) == 200 * 50 + 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(0, 0) == 6100052898045856299  # fixed: another value changes the images of published seeds


@pytest.mark.parametrize("estimator", EVALUATIONS.values(), ids=EVALUATIONS)
def test_no_global_random_state_is_touched(estimator):
    torch.manual_seed(3)
    python_random.seed(3)
    before, python_before = torch.get_rng_state(), python_random.getstate()
    first = estimator(SHARES, 10, [1, 2]).variants
    assert torch.equal(torch.get_rng_state(), before)
    assert python_random.getstate() == python_before
    torch.manual_seed(4)
    assert torch.equal(estimator(SHARES, 10, [1, 2]).variants, first)  # nor read


@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_negative_coefficients_are_refused(estimator):
    with pytest.raises(BlendError) as caught:
        estimator((-0.5, 1.0, 0.5), 5, [0])
    message = str(caught.value)
    assert "the coefficients (base first) are -0.5, 1, 0.5" in message
    assert "Lower alignment to 1 or less, or choose budget" in message
    assert exact((-0.5, 1.0, 0.5), 5, [0]).weights.tolist() == [[-0.5, 1.0, 0.5]] * 5


@pytest.mark.parametrize("estimator", ONE_PER_STEP)
def test_coefficients_that_do_not_sum_to_one_are_refused(estimator):
    with pytest.raises(BlendError, match=r"sum to 0\.8, expected 1"):
        estimator((0.5, 0.3), 5, [0])


# --- plans


def test_a_part_of_the_batch_is_served_where_all_images_share_their_variants():
    plan = exact((0.5, 0.25, 0.25), 2, range(4))
    assert plan.for_images(0, 4).shape == (3, 4)
    assert plan.for_images(1, 3).tolist() == [[0] * 3, [1] * 3, [2] * 3]
    mixed = Plan(torch.tensor([[[0, 1, 0]], [[1, 1, 1]]]), torch.ones(2, 1, dtype=torch.float64))
    assert mixed.for_images(1, 2).tolist() == [[1, 1]]
    assert mixed.for_images(0, 3).tolist() == [[0, 1, 0]]
    with pytest.raises(BlendError, match=r"2 images at once where the batch has 3.*choose the exact evaluation"):
        mixed.for_images(0, 2)


def test_choices_are_described_by_image_and_step():
    plan = Plan(torch.tensor([[[0, 2]], [[1, 1]]]), torch.ones(2, 1, dtype=torch.float64))
    assert describe_choices(plan, ("calm", "vivid")) == "image 1: 1: base, 2: calm\nimage 2: 1: vivid, 2: calm"


# --- how near one evaluation per step comes to the exact blend


def bases_of(world):
    directions = 0.6 * normal(3, world.size, seed=50)
    return [world, *(world.tilted_linear(direction, 1.0) for direction in directions)]


def distance_to_exact(estimator, coefficients, family, images=48, steps=50, eta=0.0):
    """The distance of x0 from the exact blend's at the end of a run, the median over images.

    The median, because an image that ends in another component of the mixture would outweigh all others.
    """
    world = mixture()
    bases, sigmas = bases_of(world), schedule(steps, family)
    x = start(images, world.size, family, seed=51)

    def run(plan):
        def denoiser(x, sigma, step):
            every = torch.stack([basis.denoised(x, sigma, family) for basis in bases])
            call = Call(state=State(x, 1 - sigma if family == "flow" else 1.0, sigma))
            return plan(lambda variants: every[variants, torch.arange(images)], step, call=call)

        return sample(denoiser, x, sigmas, family, eta=eta, seed=3)

    seeds = [image_seed(7, i) for i in range(images)]
    away = run(estimator(coefficients, steps, seeds)) - run(exact(coefficients, steps, seeds))
    return away.norm(dim=1).median().item()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coefficients", [(0.0, 0.3, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), (0.0, 0.5, 0.5, 0.0)])
def test_stratified_is_nearer_to_exact_than_sampled(coefficients, family):
    factor = distance_to_exact(random, coefficients, family) / distance_to_exact(stratified, coefficients, family)
    print(f"{family} {coefficients}: sampled is {factor:.2f} times as far from exact as stratified")
    assert factor > 3  # measured: 6.2 to 11.1


@pytest.mark.slow
def test_more_steps_bring_stratified_nearer_at_first_order():
    coefficients = (0.0, 0.3, 0.3, 0.4)
    few, many = (distance_to_exact(stratified, coefficients, "flow", steps=steps) for steps in (20, 80))
    print(f"20 steps are {few / many:.2f} times as far from exact as 80")
    assert few / many > 2.5  # measured 4.4; four times the steps: 4 at first order, 2 at the pace of random draws


@pytest.mark.parametrize("estimator", [exact, merged, random, stratified])
def test_the_parts_of_a_plan_together_are_the_plan(estimator):
    seeds = [image_seed(1, i) for i in range(3)]
    table = torch.stack([torch.linspace(1, 0, 9), torch.linspace(0, 1, 9)], 1).double()
    whole = estimator(table, 9, seeds)
    parts = [whole.part(0, 4), whole.part(4, 5)]
    assert torch.equal(torch.cat([part.variants for part in parts]), whole.variants)
    assert torch.equal(torch.cat([part.weights for part in parts]), whole.weights)
    assert whole.part(0, 9) is whole


def test_the_parts_of_a_budget_share_what_it_may_spend_and_remember_nothing_of_one_another():
    whole = budget((0.5, 0.3, 0.2), 20, [image_seed(1, 0)], evaluations=1.5)
    parts = [whole.part(0, 8), whole.part(8, 12)]
    assert [part.spare for part in parts] == [4, 6] and whole.spare == 10
    assert torch.equal(torch.cat([part.coefficients for part in parts]), whole.coefficients)
    assert parts[0].memory is not parts[1].memory


def test_a_run_that_goes_on_has_another_seed_for_its_choices():
    seeds = {image_seed(seed, index, part) for seed in range(20) for index in range(20) for part in ("", " from 0.9")}
    assert len(seeds) == 800


@pytest.mark.parametrize(("steps", "start"), [(0, 3), (10, 10), (10, -1)])
def test_a_start_that_is_no_step_of_a_job_is_refused(steps, start):
    with pytest.raises(BlendError, match=f"start_at_step is {start} and job_steps {steps}, expected a step before"):
        Job(steps, start)


def test_a_run_of_more_steps_than_its_job_has_left_is_refused():
    assert [Job().whole(7), Job(10).whole(4), Job(10, 4).whole(6)] == [7, 10, 10]
    with pytest.raises(BlendError, match=r"7 steps from step 4 of a job of 10 on, expected at most 6\. .*at least 11"):
        Job(10, 4).whole(7)


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_of_an_evaluation_is_refused_with_the_one_to_take_instead(name):
    with pytest.raises(BlendError, match=f"evaluation is '{name}', expected one of exact.* Choose {FORMER[name]}"):
        check_evaluation("evaluation", name, EVALUATIONS)
    assert FORMER[name].split(",")[0] in EVALUATIONS
