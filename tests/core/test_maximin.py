"""Worst reward first, on Gaussian worlds whose maximin preference is known in closed form."""

from dataclasses import replace

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.blend_core.maximin import attained, personal, worse_first

from .worlds import gaussian, normal, sample

KL_WEIGHT, ALIGNMENT, STEPS = 2.0, 0.8, 60
# Down from a noise level that hides the data's mean: below it, x remembers at which weights it was drawn.
SIGMAS = [*(torch.linspace(1000 ** (1 / 7), 0.02 ** (1 / 7), STEPS, dtype=torch.float64) ** 7).tolist(), 0.0]


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


class LinearRewards:
    """r_i = a_i . x on N(m, S). The blend at w is N(m + lambda S sum_i w_i a_i / alpha, S), so its rewards are

    E[r] = A m + G w,   G = lambda A S A^T / alpha,   and V(w) = w . (A m - targets) + w . G w / 2

    is strictly convex: a w inside the simplex with all E[z_i] equal is its only minimum.
    """

    def __init__(self, count, meet=None, targets=None, scales=None, seed=11):
        """meet: targets are such that all rewards are attained equally at this preference."""
        self.base, self.directions = gaussian(), normal(count, 6, seed=seed)
        self.blend = Blend(("a", "b", "c")[:count], (1 / count,) * count, ALIGNMENT)
        self.worlds = [self.base, *(self.base.tilted_linear(a, KL_WEIGHT) for a in self.directions)]
        self.targets, self.scales = [0.0] * count, scales or [1.0] * count
        if meet is not None:
            self.targets = (self.at(meet) * numbers(*self.scales)).tolist()
        self.targets = targets or self.targets

    def attained(self, x0):
        return attained(x0 @ self.directions.T, self.targets, self.scales)

    def at(self, preference):
        """E[z] of the blend at `preference`, in closed form."""
        pull = ALIGNMENT * preference @ self.directions / KL_WEIGHT
        return self.attained(self.base.means[0] + self.base.covariances[0] @ pull)

    def run(self, rate):
        """(preference, E[z]) at the end of a run that moves one preference for all images after every step.

        Noise in pairs of opposite sign: as everything is linear, their mean is that of infinitely many images.
        """
        noise = normal(4, 6, seed=3)
        x = self.base.means[0] + SIGMAS[0] * torch.cat([noise, -noise])
        preference = numbers(*self.blend.preference)

        def denoiser(x, sigma, step):
            nonlocal preference
            coefficients = numbers(*replace(self.blend, preference=preference.tolist()).coefficients)
            plan = personal(coefficients.expand(len(x), -1), STEPS)
            denoised = plan(lambda v: torch.stack([self.worlds[i].denoised(x, sigma) for i in v[:, 0].tolist()]), step)
            preference = worse_first(preference, self.attained(denoised).mean(0), rate)
            return denoised

        x0 = sample(denoiser, x, SIGMAS)
        return preference, self.attained(x0).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("share", [(0.2, 0.8), (0.5, 0.5), (0.75, 0.25), (0.5, 0.3, 0.2), (0.1, 0.2, 0.7)])
def test_a_run_ends_at_the_closed_form_preference_and_worst_reward(share):
    rewards, best = LinearRewards(len(share), meet=numbers(*share)), numbers(*share)
    preference, scores = rewards.run(rate=2.0)
    torch.testing.assert_close(preference, best, rtol=0, atol=0.01)
    assert scores.min().item() == pytest.approx(rewards.at(best).min().item(), abs=2e-3)
    even = rewards.at(numbers(*rewards.blend.preference))
    assert share == (0.5, 0.5) or rewards.at(best).min() - even.min() > 0.1  # there was something to gain


def test_where_one_reward_stays_worst_it_takes_all_the_weight():
    rewards = LinearRewards(2, targets=[10.0, 0.0])
    preference, scores = rewards.run(rate=2.0)
    assert preference[0] > 0.999
    assert scores.min().item() == pytest.approx(rewards.at(numbers(1, 0)).min().item(), abs=5e-3)


def test_rewards_of_unlike_scales_end_alike_on_their_own_scales():
    share, scales = numbers(0.6, 0.4), [0.5, 2.0]
    rewards = LinearRewards(2, meet=share, scales=scales)
    preference, scores = rewards.run(rate=2.0)
    torch.testing.assert_close(preference, share, rtol=0, atol=0.01)
    assert abs(scores[0] - scores[1]) < 2e-3


def test_a_step_is_the_formula_and_keeps_images_apart():
    preference, z = numbers(0.5, 0.3, 0.2).expand(2, -1), torch.stack([numbers(1, 0, -1), numbers(0.3, 0.2, 0.1)])
    moved = worse_first(preference, z, rate=1.5)
    expected = preference * torch.exp(-1.5 * z)
    torch.testing.assert_close(moved, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-15)
    assert torch.equal(worse_first(preference[1], z[1], 1.5), moved[1])


def test_where_all_are_alike_nothing_moves_and_a_weight_of_zero_stays():
    preference = numbers(0.625, 0.375, 0.0)
    assert torch.equal(worse_first(preference, numbers(0.7, 0.7, 0.7), 3.0), preference)
    far = worse_first(preference, numbers(900, 2, -900), rate=50.0)
    assert torch.equal(far, numbers(0, 1, 0))


def test_scores_are_compared_on_their_scales():
    z = attained(torch.tensor([[20.0, 0.2], [24.0, 0.6]]), (20.0, 0.0), (8.0, 0.5))
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.4], [0.5, 1.2]], dtype=torch.float64))
    with pytest.raises(BlendError, match="a score that is no number"):
        attained(torch.tensor([1.0, torch.nan]), (0.0, 0.0), (1.0, 1.0))


PREDICTIONS = normal(3, 4, 5, 6, seed=1).float()  # three variants; two groups of rows of two images


def test_every_image_has_its_own_coefficients_in_every_group_of_rows():
    table = numbers(0, 0.6, 0.4, -0.3, 1.3, 0).view(2, 3)
    result = personal(table, 3)(lambda variants: PREDICTIONS[variants[:, 0]], 1)
    singles = [exact(row, 3, [0, 1])(lambda variants: PREDICTIONS[variants[:, 0]], 1) for row in table]
    for row in range(4):
        torch.testing.assert_close(result[row], singles[row % 2][row], rtol=1e-6, atol=1e-6)


def test_like_coefficients_are_the_exact_plan_bit_for_bit():
    coefficients = numbers(0.2, 0.5, 0.3)
    plans = personal(coefficients.expand(2, -1), 3), exact(coefficients, 3, [0, 1])
    result, one = (plan(lambda variants: PREDICTIONS[variants[:, 0]], 1) for plan in plans)
    assert torch.equal(result, one)


def test_a_variant_that_no_image_needs_is_not_evaluated_and_a_part_of_the_batch_is_refused():
    plan = personal(numbers(0, 1, 0, 0, 0.4, 0.6).view(2, 3), 3)
    assert plan.active(0)[0].tolist() == [[1, 1], [2, 2]]
    with pytest.raises(BlendError, match="1 images at once where the batch has 2"):
        plan(lambda variants: PREDICTIONS[variants[:, 0]], 0, 1)
