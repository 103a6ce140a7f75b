"""The objectives as pure functions."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.trainers.objectives import losses
from diffusion_blend.trainers.objectives.policy_gradient import Spread
from diffusion_blend.trainers.objectives.predicted_x0 import spread_choice

OPTIONS = {"kl_weight": 0.0, "spread": 1.0, "clip": 0.1, "dimensions": 1}
ZERO = torch.zeros(1)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_are_the_distance_to_the_others():
    advantages = losses.leave_one_out(doubles(1, 2, 3)[None], torch.zeros(3))
    torch.testing.assert_close(advantages, doubles(-1.5, 0, 1.5)[None])


def test_groups_do_not_see_one_another():
    advantages = losses.leave_one_out(doubles(1, 100, 3, 102)[None], torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(advantages, doubles(-2, -2, 2, 2)[None])


def test_a_group_without_spread_and_a_lone_image_get_no_advantage():
    assert torch.equal(losses.leave_one_out(torch.full((2, 3), 7.0), torch.zeros(3)), torch.zeros(2, 3))
    assert torch.equal(losses.leave_one_out(torch.full((2, 1), 7.0), torch.zeros(1)), torch.zeros(2, 1))


def test_the_return_of_a_step_pays_the_later_steps_kl_and_not_its_own():
    kl = doubles(1, 10, 100)[:, None]
    torch.testing.assert_close(losses.returns_to_go(doubles(5), kl, 0.1), doubles(5 - 11, 5 - 10, 5)[:, None])


def slope(log_ratio, advantage, **options):
    leaf = torch.tensor([float(log_ratio)], requires_grad=True)
    loss = losses.policy_gradient(leaf, torch.tensor([float(advantage)]), ZERO, **OPTIONS | options)
    return torch.autograd.grad(loss.sum(), leaf)[0].item()


def test_a_better_sample_becomes_more_likely():
    assert slope(0, 2) == pytest.approx(-2) and slope(0, -2) == pytest.approx(2)


@pytest.mark.parametrize(
    ("ratio_log", "advantage", "moves"),
    [(0.2, 1, False), (-0.2, 1, True), (-0.2, -1, False), (0.2, -1, True), (0.05, 1, True), (-0.05, -1, True)],
)
def test_the_clip_stops_only_what_already_went_too_far(ratio_log, advantage, moves):
    assert (slope(ratio_log, advantage) != 0) is moves
    share = losses.clipped_share(torch.tensor([ratio_log]), torch.tensor([float(advantage)]), 0.1)
    assert share == (0.0 if moves else 1.0)


def test_spread_divides_reward_and_kl_alike():
    ratio, kl = torch.tensor([0.01]), torch.tensor([3.0])
    plain = losses.policy_gradient(ratio, torch.tensor([2.0]), kl, **OPTIONS | {"kl_weight": 0.5})
    divided = losses.policy_gradient(ratio, torch.tensor([2.0]), kl, **OPTIONS | {"kl_weight": 0.5, "spread": 4.0})
    torch.testing.assert_close(divided, plain / 4)


def test_the_policy_gradient_is_the_objectives_divided_by_dimensions():
    new = doubles(-3.0, 1.0).requires_grad_()
    kl_leaf = doubles(0.2, 0.4).requires_grad_()
    ratio = losses.log_ratio(new, new.detach(), 16)
    loss = losses.policy_gradient(
        ratio, doubles(2, -1), kl_leaf, kl_weight=0.5, spread=1.0, clip=0.1, dimensions=16
    ).sum()
    by_new, by_kl = torch.autograd.grad(loss, (new, kl_leaf))
    torch.testing.assert_close(by_new, -doubles(2, -1) / 16)
    torch.testing.assert_close(by_kl, doubles(0.5, 0.5) / 16)


def test_the_spread_comes_from_earlier_epochs():
    spread = Spread()
    assert spread.current(doubles(0, 2)) == pytest.approx(2**0.5)
    spread.update(doubles(0, 2))
    assert spread.current(doubles(0, 200)) == pytest.approx(2**0.5)


def test_the_reward_gradient_pays_the_kl():
    loss = losses.reward_gradient(doubles(3.0), doubles(2.0), kl_weight=0.25)
    torch.testing.assert_close(loss, doubles(-2.5))


def test_a_preference_is_a_coin_at_the_base_and_falls_with_the_evidence():
    zero = doubles(0.0)
    assert losses.preference(zero, zero, kl_weight=0.1).item() == pytest.approx(0.6931, abs=1e-4)
    better = doubles(5.0).requires_grad_()
    loss = losses.preference(better, zero, kl_weight=0.1)
    assert torch.autograd.grad(loss, better)[0].item() == pytest.approx(-0.1 / (1 + 2.718281828**0.5), rel=1e-6)


def test_preference_evidence_is_the_expected_log_ratio_of_the_chain():
    from .chain import ddim_chain

    step = ddim_chain(10)[4]
    draw = torch.Generator().manual_seed(0)
    x, target, prediction, reference = torch.randn(4, 1, 6, dtype=torch.float64, generator=draw)
    noise = torch.randn(60000, 6, dtype=torch.float64, generator=draw)
    following = step.mean(x, target) + step.sigma * noise
    ratios = step.log_prob(following, step.mean(x, prediction)) - step.log_prob(following, step.mean(x, reference))
    evidence = losses.preference_evidence(prediction, reference, target, step.kl_factor)
    assert abs(ratios.mean() - evidence[0]) < 4 * ratios.std() / len(ratios) ** 0.5


def test_chosen_steps_sum_to_all_of_them_on_average():
    factors, count, rounds = [0.1] * 8 + [0.5, 5.0, 0.5], 4, 4000
    draw, totals = torch.Generator().manual_seed(0), torch.zeros(11)
    for _ in range(rounds):
        chosen = spread_choice(factors, count, draw)
        assert len(chosen) == count and len({k for k, _ in chosen}) == count
        for k, weight in chosen:
            totals[k] += weight / rounds
    largest = 11 / count  # of the weights; a mean of weight * Bernoulli(1 / weight)
    assert (totals - 1).abs().max() < 5 * (2 * largest) ** 0.5 / rounds**0.5
    assert totals[9] == pytest.approx(1, abs=0.05)


def test_the_average_is_of_the_weights_after_updates_and_goes_back():
    from diffusion_blend.trainers.loop.average import Average

    weight = torch.zeros(1)
    average, plain = Average({"w": weight}, 0.5), Average({"w": weight}, 0.0)
    expected = 0.0
    for update in range(20):
        weight += 1
        average.update()
        plain.update()
        decay = min(0.5, update / (update + 10))
        expected = decay * expected + (1 - decay) * weight.item()
    assert average.average["w"].item() == pytest.approx(expected) and plain.average["w"].item() == 20
    with pytest.raises(ZeroDivisionError), average.applied():
        assert weight.item() == pytest.approx(expected)
        raise ZeroDivisionError
    assert weight.item() == 20
