"""The algebra of a blend, and what it is exact for, on worlds whose denoisers are known."""

import dataclasses
import math
import pickle
import traceback

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError, blend
from diffusion_blend.blend_core.blend import normalised, parse_weights, shares
from diffusion_blend.blend_core.estimators import exact

from .worlds import (
    FAMILIES,
    covariance,
    from_eps,
    from_v,
    from_velocity,
    gaussian,
    normal,
    sample,
    schedule,
    start,
    to_eps,
    to_v,
    to_velocity,
)

EXACT = {"rtol": 0, "atol": 1e-10}  # float64, values of order 1 to 10, some hundred operations
NAMES = ("calm", "vivid", "sharp")
BLENDS = [((0.2, 0.5, 0.3), 1.0), ((1.0, 0.0, 0.0), 0.4), ((0.6, 0.3, 0.1), 2.5), ((1 / 3, 1 / 3, 1 / 3), 0.0)]


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def weighed(coefficients, predictions):
    """The blend of a list of predictions, base first."""
    stacked = torch.stack(list(predictions))
    return blend(tensor(coefficients).view(-1, *[1] * (stacked.dim() - 1)), stacked)


def refusal(*arguments, of=Blend, **options):
    with pytest.raises(BlendError) as caught:
        of(*arguments, **options)
    return str(caught.value)


# --- coefficients


def test_a_preference_alone_gives_its_weights_and_no_base():
    assert Blend(NAMES, (0.2, 0.5, 0.3)).coefficients == (0.0, 0.2, 0.5, 0.3)  # DB-MPA


@pytest.mark.parametrize("alignment", [0.0, 0.25, 1.0, 1.7])
def test_alignment_moves_between_base_and_basis_and_beyond(alignment):
    coefficients = Blend(["calm"], [1.0], alignment).coefficients  # DB-KLA
    assert coefficients == pytest.approx((1 - alignment, alignment), abs=1e-15)


def test_preference_and_alignment_multiply():
    assert Blend(NAMES, (0.2, 0.5, 0.3), 0.7).coefficients == pytest.approx((0.3, 0.14, 0.35, 0.21), abs=1e-15)
    assert Blend(NAMES, (0.2, 0.5, 0.3), 2).coefficients == pytest.approx((-1, 0.4, 1.0, 0.6), abs=1e-15)


def test_weights_and_alignments_below_0_move_away_from_a_reward():
    assert Blend(NAMES, (0.5, -0.3, 0.2), 2).coefficients == pytest.approx((0.2, 1.0, -0.6, 0.4), abs=1e-15)
    assert Blend(NAMES, (0.2, 0.5, 0.3), -10).coefficients == pytest.approx((11, -2, -5, -3), abs=1e-14)
    signed = Blend(["calm", "vivid"], (0.5, -0.5), 1.0, (0.1, 0.3))  # the target is the mean of the sizes
    assert signed.coefficients == pytest.approx((1 + 0.5, 0.25, -0.75), abs=1e-15)


def test_shares_keep_signs_and_have_sizes_of_sum_1():
    assert shares([3, -1]) == (0.75, -0.25)
    assert shares([1.0, -1.0]) == (0.5, -0.5)
    assert "sum to 0" in refusal([0.0, -0.0], of=shares)


def test_a_blend_at_an_alignment_is_the_same_preference_further_along():
    blended = Blend(NAMES, (0.2, 0.5, 0.3), 0.8)
    assert blended.aligned(0.5) == Blend(NAMES, (0.2, 0.5, 0.3), 0.4)
    assert blended.alignment == 0.8


def test_unlike_kl_weights_weigh_a_basis_by_its_own_over_the_target():
    blended = Blend(NAMES, (0.5, 0.3, 0.2), 0.8, (0.1, 0.2, 0.4), target_kl_weight=0.25)
    expected = [0.8 * w * alpha / 0.25 for w, alpha in zip((0.5, 0.3, 0.2), (0.1, 0.2, 0.4), strict=True)]
    assert blended.uses_kl_weights
    assert blended.coefficients == pytest.approx((1 - sum(expected), *expected), abs=1e-15)


def test_without_a_target_the_bases_sum_to_the_alignment_and_keep_their_ratios():
    coefficients = Blend(NAMES, (0.5, 0.3, 0.2), 0.8, (0.1, 0.2, 0.4)).coefficients
    assert math.fsum(coefficients[1:]) == pytest.approx(0.8, abs=1e-15)
    assert coefficients[2] / coefficients[1] == pytest.approx(0.3 * 0.2 / (0.5 * 0.1), rel=1e-14)
    assert Blend(NAMES, (0, 1, 0), 1.0, (0.1, 0.2, 0.4)).coefficients == pytest.approx((0, 0, 1, 0), abs=1e-15)


def test_equal_or_unknown_kl_weights_leave_the_preference_as_it_is():
    plain = Blend(NAMES, (0.5, 0.3, 0.2), 0.8)
    assert Blend(NAMES, (0.5, 0.3, 0.2), 0.8, (0.3, 0.3, 0.3)).coefficients == plain.coefficients
    partly = Blend(NAMES, (0.5, 0.3, 0.2), 0.8, (0.3, None, 0.1))
    assert not partly.uses_kl_weights
    assert partly.coefficients == plain.coefficients


def test_a_target_below_the_trained_kl_weight_goes_beyond_the_trained_models():
    blended = Blend(["calm"], [1.0], 1.0, [0.2], target_kl_weight=0.1)
    assert blended.coefficients == pytest.approx((-1, 2), abs=1e-15)


@pytest.mark.parametrize("preference", [(0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.1, 0.2, 0.7), (1 / 3, 1 / 3, 1 / 3)])
def test_decimals_that_miss_one_by_a_rounding_leave_no_trace_of_the_base(preference):
    blended = Blend(NAMES, preference)
    assert blended.coefficients[0] == 0.0
    assert exact(blended.coefficients, 1, [0]).variants[0, :, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("third", [0.3333333, 0.3333334])
def test_typed_thirds_leave_no_trace_of_the_base(third):
    coefficients = Blend(NAMES, (third,) * 3).coefficients
    assert coefficients == pytest.approx((0, 1 / 3, 1 / 3, 1 / 3), abs=1e-15)
    assert coefficients[0] == 0.0
    with_kl_weights = Blend(NAMES, (third,) * 3, 1.0, (0.1, 0.2, 0.3)).coefficients
    assert with_kl_weights[0] == 0.0


def test_coefficients_sum_to_one_whatever_goes_in():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        numbers = torch.rand(7, dtype=torch.float64, generator=generator).tolist()
        preference, alphas = normalised(numbers[:3]), [0.05 + number for number in numbers[3:6]]
        blended = Blend(NAMES, preference, 3 * numbers[6], alphas, target_kl_weight=0.1 + numbers[0])
        assert math.fsum(blended.coefficients) == pytest.approx(1, abs=1e-9)


# --- as a person reads it, and as a file keeps it


def test_the_formula_lists_base_and_bases_with_their_signs():
    assert Blend(("calm", "vivid"), (0.6, 0.4), 0.7).formula() == "0.3 base + 0.42 calm + 0.28 vivid"
    assert Blend(("calm", "vivid"), (0.6, 0.4)).formula() == "0.6 calm + 0.4 vivid"
    assert Blend(("calm", "vivid"), (1.0, 0.0), 1.5).formula() == "-0.5 base + 1.5 calm"
    assert Blend(["calm"], [1.0], 0.0).formula() == "1 base"
    assert str(Blend(["calm"], [1.0])) == "1 calm"


def test_the_description_says_whether_kl_weights_entered():
    lines = Blend(("calm", "vivid"), (0.5, 0.5), 1.0, (0.1, 0.3)).describe().splitlines()
    assert lines == ["0.25 calm + 0.75 vivid", "base: 0", "calm: 0.25", "vivid: 0.75", "weighed by KL weight: 0.1, 0.3"]
    partly = Blend(("calm", "vivid"), (0.5, 0.5), 1.0, (0.1, None)).describe()
    assert partly.endswith("KL weights not used: not every LoRA states its own")
    assert "KL weight" not in Blend(("calm", "vivid"), (0.5, 0.5)).describe()


def test_a_blend_cannot_be_changed():
    names, preference = ["calm", "vivid"], [0.5, 0.5]
    blended = Blend(names, preference)
    names[0], preference[0] = "loud", 9.0
    assert (blended.names, blended.preference) == (("calm", "vivid"), (0.5, 0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        blended.alignment = 2.0


# --- refusals: what came, what was expected, what to do


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), ()), ["at least one basis", "Connect a Reward LoRA"]),
        ((("a", "a"), (0.5, 0.5)), ["two bases are named a", "another label"]),
        ((("base",), (1.0,)), ["stands for the pretrained model", "another label"]),
        ((("a", "b"), (1.0,)), ["1 weights (1) for 2 bases (a, b)", "one weight per basis"]),
        ((("a", "b"), (0.5, 0.4)), ["0.5, 0.4 sum to 0.9, expected 1", "normalise"]),
        ((("a", "b"), (1.5, -0.5)), ["1.5, -0.5 without their signs sum to 2, expected 1", "alignment"]),
        ((("a", "b"), (0.0, 0.0)), ["sum to 0", "set alignment to 0"]),
        ((("a",), (math.nan,)), ["a weight is nan", "expected numbers"]),
        ((("a",), (1e308,)), ["a weight is 1e+308", "at most 1e+09"]),
        ((("a",), (1.0,), math.inf), ["alignment is inf", "expected a finite number"]),
        ((("a",), (1.0,), 1.0, (0.1, 0.2)), ["2 KL weights for 1 bases", "one per basis"]),
        ((("a",), (1.0,), 1.0, (0.0,)), ["the KL weight of a is 0.0", "above 0"]),
        ((("a",), (1.0,), 1.0, (0.1,), -1.0), ["target_kl_weight is -1.0", "above 0", "leave it unset"]),
    ],
)
def test_a_blend_that_means_nothing_is_refused(arguments, words):
    message = refusal(*arguments)
    assert [word for word in words if word not in message] == [], message


def test_a_target_kl_weight_needs_every_basis_own():
    with pytest.raises(BlendError) as caught:
        _ = Blend(("a", "b"), (0.5, 0.5), 1.0, (0.1, None), 0.2).coefficients
    assert "the KL weight of b is not known" in str(caught.value)
    assert "leave target_kl_weight unset" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("0.6, 0.4", 2, (0.6, 0.4)),
        ("60% 40%", 2, (0.6, 0.4)),
        ("2; 1", 2, (2.0, 1.0)),
        (" 1\n2,,3 ", 3, (1.0, 2.0, 3.0)),
        ("", 4, (0.25,) * 4),
        ("-1 1e-3", 2, (-1.0, 0.001)),
        ("0,6 0,4", 2, (0.6, 0.4)),
        ("0,6; 0,4", 2, (0.6, 0.4)),
        ("0,6, 0,4", 2, (0.6, 0.4)),
        ("62,5% 37,5%", 2, (0.625, 0.375)),
        ("60%,40%", 2, (0.6, 0.4)),
        ("0.6,0.4", 2, (0.6, 0.4)),
        ("1,0,0,0", 4, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_weights_are_read_as_people_write_them(text, count, expected):
    assert parse_weights(text, count) == pytest.approx(expected, abs=1e-15)


def test_weights_that_are_no_numbers_or_of_another_count_are_refused():
    message = refusal("0.6 much", 2, of=parse_weights)
    assert "'0.6 much' are not numbers" in message and "point before decimals" in message
    message = refusal("1 2 3", 2, of=parse_weights)
    assert "3 weights (1, 2, 3) for 2 reward LoRAs" in message and "one weight per reward LoRA" in message
    assert "Connect at least one" in refusal("", 0, of=parse_weights)


@pytest.mark.parametrize(
    ("text", "count"), [("0,6,0,4", 4), ("0,6,0,4", 2), ("0,6 0,4", 4), ("0,6,0,4 1", 3), ("0,6", 1)]
)
def test_commas_that_may_be_decimal_are_refused_with_the_way_to_write_them(text, count):
    assert "(0.6, 0.4), or decimal commas with spaces or semicolons" in refusal(text, count, of=parse_weights)


def test_the_number_of_an_empty_slot_is_left_out():
    assert parse_weights("0.5, 0.3, 0.2", 2, slots=[0, 2]) == (0.5, 0.2)
    assert parse_weights("0.5, 0.2", 2, slots=[0, 2]) == (0.5, 0.2)
    with pytest.raises(BlendError, match=r"3 weights .* for 2 reward LoRAs \(lora_0 calm, lora_1 vivid\)"):
        parse_weights("0.5, 0.3, 0.2", 2, slots=[0, 1], names=["lora_0 calm", "lora_1 vivid"])


def test_an_error_prints_its_sentence_and_no_module_and_survives_pickling():
    error = pickle.loads(pickle.dumps(BlendError("a sentence")))
    assert isinstance(error, BlendError) and error.args == ("a sentence",)
    assert traceback.format_exception_only(error) == ["BlendError: a sentence\n"]


def test_normalised_weights_keep_their_ratios_and_sum_to_one():
    assert normalised([2, 1, 1]) == (0.5, 0.25, 0.25)
    assert normalised([0, 3]) == (0.0, 1.0)
    assert "a weight is -1" in refusal([2, -1], of=normalised)
    assert "a weight is inf" in refusal([math.inf, 1], of=normalised)
    assert "sum to 0" in refusal([0, 0], of=normalised)


# --- identities of the blended prediction


def test_a_one_hot_blend_is_that_basis_bit_for_bit():
    predictions = normal(4, 5, 3, seed=0)
    for i in range(3):
        one_hot = [float(i == j) for j in range(3)]
        coefficients = Blend(NAMES, one_hot, 1.0, (0.1, 0.2, 0.3)).coefficients
        assert torch.equal(weighed(coefficients, predictions), predictions[i + 1])
    assert torch.equal(weighed(Blend(NAMES, (0.2, 0.5, 0.3), 0.0).coefficients, predictions), predictions[0])


def test_the_order_of_the_bases_is_irrelevant():
    predictions = normal(4, 5, 3, seed=1)
    preference, alphas = (0.2, 0.5, 0.3), (0.1, 0.2, 0.4)
    one = weighed(Blend(NAMES, preference, 1.3, alphas).coefficients, predictions)
    for order in ((2, 0, 1), (1, 0, 2), (2, 1, 0)):
        names, weights, kl = ([values[i] for i in order] for values in (NAMES, preference, alphas))
        moved = weighed(
            Blend(names, weights, 1.3, kl).coefficients, [predictions[0], *(predictions[i + 1] for i in order)]
        )
        torch.testing.assert_close(moved, one, **EXACT)


def test_coefficients_may_be_a_mask_over_latent_positions():
    predictions, mask = normal(2, 1, 3, 4, 4, seed=2), torch.zeros(4, 4, dtype=torch.float64)
    mask[:, 2:] = 1
    blended = blend(torch.stack([1 - mask, mask])[:, None, None], predictions)
    assert torch.equal(blended[..., :2], predictions[0][..., :2])
    assert torch.equal(blended[..., 2:], predictions[1][..., 2:])


@pytest.mark.parametrize(("preference", "alignment"), BLENDS)
def test_blends_of_eps_v_velocity_and_denoised_agree(preference, alignment):
    coefficients = Blend(NAMES, preference, alignment).coefficients
    x, denoised = normal(5, 6, seed=3), normal(4, 5, 6, seed=4)
    for sigma in (0.1, 0.5, 0.95):
        expected = weighed(coefficients, denoised)
        views = [(lambda d, x, s, f=f: to_eps(d, x, s, f), lambda e, x, s, f=f: from_eps(e, x, s, f)) for f in FAMILIES]
        for view, back in (*views, (to_v, from_v), (to_velocity, from_velocity)):
            blended = weighed(coefficients, [view(d, x, sigma) for d in denoised])
            torch.testing.assert_close(back(blended, x, sigma), expected, **EXACT)


def test_blending_and_guidance_commute():
    cond, uncond = normal(4, 5, 6, seed=5), normal(4, 5, 6, seed=6)
    coefficients = Blend(NAMES, (0.2, 0.5, 0.3), 1.4).coefficients
    for cfg in (1.0, 7.5):
        guided_first = weighed(coefficients, uncond + cfg * (cond - uncond))
        blended = weighed(coefficients, uncond), weighed(coefficients, cond)
        torch.testing.assert_close(blended[0] + cfg * (blended[1] - blended[0]), guided_first, **EXACT)


# --- what a blend is exact for (MATH: Gaussian worlds)


def linear_case(preference, alignment, kl_weight=0.8):
    """(base first) denoisers of a Gaussian and three linear rewards, and the world the blend stands for."""
    base, directions = gaussian(), normal(3, 6, seed=30)
    worlds = [base, *(base.tilted_linear(direction, kl_weight) for direction in directions)]
    target = base.tilted_linear(alignment * (tensor(preference) @ directions), kl_weight)
    return worlds, target


def blended_denoiser(worlds, coefficients, family):
    return lambda x, sigma, step: weighed(coefficients, [world.denoised(x, sigma, family) for world in worlds])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("preference", "alignment"), BLENDS)
def test_linear_rewards_blend_exactly(preference, alignment, family):
    worlds, target = linear_case(preference, alignment)
    denoiser = blended_denoiser(worlds, Blend(NAMES, preference, alignment).coefficients, family)
    x = normal(8, 6, seed=31)
    for sigma in (0.02, 0.3, 0.9):
        torch.testing.assert_close(denoiser(x, sigma, 0), target.denoised(x, sigma, family), **EXACT)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("preference", "alignment"), BLENDS)
def test_linear_rewards_blend_exactly_through_a_whole_run(preference, alignment, family, eta):
    worlds, target = linear_case(preference, alignment)
    denoiser = blended_denoiser(worlds, Blend(NAMES, preference, alignment).coefficients, family)
    x, sigmas = start(8, 6, family, seed=32), schedule(30, family)
    blended = sample(denoiser, x, sigmas, family, eta, seed=33)
    tuned = sample(lambda x, sigma, step: target.denoised(x, sigma, family), x, sigmas, family, eta, seed=33)
    torch.testing.assert_close(blended, tuned, **EXACT)


def test_linear_rewards_of_unlike_kl_weights_blend_exactly():
    base, directions = gaussian(), normal(3, 6, seed=30)
    alphas, preference, target_alpha = (0.3, 0.8, 2.0), (0.2, 0.5, 0.3), 0.6
    worlds = [base, *(base.tilted_linear(d, alpha) for d, alpha in zip(directions, alphas, strict=True))]
    coefficients = Blend(NAMES, preference, 0.9, alphas, target_alpha).coefficients
    target = base.tilted_linear(0.9 * (tensor(preference) @ directions), target_alpha)
    x = normal(8, 6, seed=31)
    blended = blended_denoiser(worlds, coefficients, "ve")(x, 0.4, 0)
    torch.testing.assert_close(blended, target.denoised(x, 0.4), **EXACT)


def quadratic_gap(curvatures, kl_weight, alignment=1.0, sigma=0.7):
    """The largest difference between the blend of two quadratic rewards and the world of their weighted sum."""
    base, centres, w = gaussian(), normal(2, 6, seed=40), (0.35, 0.65)
    worlds = [base, *(base.tilted_quadratic(b, q, kl_weight) for b, q in zip(centres, curvatures, strict=True))]
    curvature = sum(wi * q for wi, q in zip(w, curvatures, strict=True))
    pull = sum(wi * q @ b for wi, q, b in zip(w, curvatures, centres, strict=True))
    centre = torch.linalg.solve(curvature, pull)  # of sum_i w_i r_i, which is a quadratic again
    target = base.tilted_quadratic(centre, curvature, kl_weight / alignment)
    denoiser = blended_denoiser(worlds, Blend(("one", "two"), w, alignment).coefficients, "ve")
    x = normal(8, 6, seed=41)
    return (denoiser(x, sigma, 0) - target.denoised(x, sigma)).abs().max().item()


def test_quadratic_rewards_of_one_curvature_blend_exactly_at_alignment_one_only():
    curvature = covariance(6, 42)
    for kl_weight in (0.05, 0.5, 5.0):
        assert quadratic_gap([curvature] * 2, kl_weight) < 1e-10
    assert quadratic_gap([curvature] * 2, 0.5, alignment=0.5) > 1e-2  # DB-KLA is an approximation here


def slope(x, y):
    """The exponent of y ~ x^slope, by least squares in logarithms."""
    logs = torch.stack([tensor(x).log(), tensor(y).log()])
    centred = logs - logs.mean(1, keepdim=True)
    return ((centred[0] * centred[1]).sum() / (centred[0] ** 2).sum()).item()


def test_unequal_curvatures_leave_a_gap_that_falls_with_the_square_of_the_kl_weight():
    curvatures = [covariance(6, 43), 3 * covariance(6, 44)]
    assert quadratic_gap(curvatures, 1.0) > 1e-2
    kl_weights = [20.0, 40.0, 80.0, 160.0, 320.0]
    gaps = [quadratic_gap(curvatures, kl_weight) for kl_weight in kl_weights]
    # The predictions agree to first order in 1 / kl_weight; the next term of the fit's range moves the slope by 0.1.
    assert slope(kl_weights, gaps) == pytest.approx(-2, abs=0.1)


def test_unequal_curvatures_leave_a_gap_that_falls_with_the_fourth_power_of_the_noise():
    curvatures = [covariance(6, 43), 3 * covariance(6, 44)]
    sigmas = [0.01, 0.02, 0.04]
    gaps = [quadratic_gap(curvatures, 0.5, sigma=sigma) for sigma in sigmas]
    # The posterior narrows as sigma^2: to that order D is linear in the tilt, products of tilts come at sigma^4.
    assert slope(sigmas, gaps) == pytest.approx(4, abs=0.1)
