"""The proof that kl_weight means what it says: every online trainer reaches the closed-form optimum of
E[reward] - kl_weight * sum of KL on the Gaussian chain, through the real objectives, rollouts and losses."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.trainers.data.prompts import epoch_chunks
from diffusion_blend.trainers.distributed import Gathering
from diffusion_blend.trainers.loop.epoch import Updater, collect, update_policy
from diffusion_blend.trainers.objectives.choice import objective_of
from diffusion_blend.trainers.objectives.predicted_x0 import check_chain
from diffusion_blend.trainers.settings.config import read_config

from .chain import ChainPolicy, ddim_chain, flow_chain, linear_reward

GRADIENT = {"images": 64, "optimisation__images_per_pass": 64}
TRAINERS = {
    "dpok": {"algorithm": "dpok", "images": 1024, "epochs": 70, "policy_gradient__value_updates": 1},
    "dpok without value network": {
        "algorithm": "dpok", "policy_gradient__value_baseline": False, "images": 2048, "epochs": 70,
    },
    "grpo": {"algorithm": "grpo", "images": 2048, "epochs": 70},
    "grpo, not standardised": {
        "algorithm": "grpo", "policy_gradient__standardise": False, "images": 2048, "epochs": 70,
    },
    "draft through all steps": {
        "algorithm": "draft", "draft__through": "last", "draft__steps": 10, "draft__kl_steps": 0, "epochs": 80,
        **GRADIENT,
    },
    "draft through x0": {"algorithm": "draft", "draft__steps": 4, "epochs": 150, **GRADIENT},
}  # fmt: skip


def trained(chain, kl_weight, *, images, epochs, **changes):
    """The shifts after training, averaged over the second half of the run, and the policy."""
    policy = ChainPolicy(chain)
    config = read_config(
        kl_weight=kl_weight,
        prompts_per_epoch=images // 8,
        images_per_prompt=8,
        sampling__steps=len(chain),
        policy_gradient__clip_range_mean_dims=0.2,
        **{"optimisation__images_per_pass": images, **changes},
    )
    objective = objective_of(config, policy, linear_reward, ["one", "other"], Gathering())
    optimiser = torch.optim.Adam(policy.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: 1 - epoch / epochs)
    update = Updater(policy.parameters(), optimiser, 1e9, schedule=schedule)
    tail = []
    for epoch in range(epochs):
        samples, figures = objective.compare(collect(objective, epoch_chunks(config, epoch, 2)), epoch)
        figures |= update_policy(config, objective, samples, update, epoch)
        if epoch >= epochs // 2:
            tail.append(policy.shifts.detach().clone())
    return torch.stack(tail).mean(0), policy, figures


def distance(shifts, optimum):
    return ((shifts - optimum).norm() / optimum.norm()).item()


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_reaches_the_optimum_of_its_kl_weight(name):
    reached = {}
    for kl_weight in (1.0, 2.0):
        reached[kl_weight], policy, figures = trained(ddim_chain(), kl_weight, **TRAINERS[name])
        optimum = policy.optimum(kl_weight)
        assert distance(reached[kl_weight], optimum) < 0.05
        along = (reached[kl_weight] * optimum).sum() / optimum.square().sum()
        assert along == pytest.approx(1, abs=0.03)  # the size alone, in which noise averages out
        if "draft through x0" not in name:  # its figure is of a few chosen steps
            assert figures["path_kl"] == pytest.approx(optimum.square().sum().item() / 2, rel=0.1)
    assert distance(reached[1.0] / 2, reached[2.0]) < 0.07  # two trainings, each with its noise


@pytest.mark.parametrize("name", ["grpo", "draft through all steps"])
def test_flow_models_reach_the_optimum_too(name):
    shifts, policy, _ = trained(flow_chain(), 1.0, **TRAINERS[name])
    assert distance(shifts, policy.optimum(1.0)) < 0.05


def test_draft_through_x0_would_miss_the_optimum_of_a_flow_chain_and_is_refused_there():
    config = {"algorithm": "draft", "draft__steps": 10, **GRADIENT}
    shifts, policy, _ = trained(flow_chain(), 1.0, epochs=120, **config)
    assert distance(shifts, policy.optimum(1.0)) > 0.2
    with pytest.raises(BlendError, match=r"flow model.*through to last"):
        check_chain(read_config(algorithm="draft"), "flow")
    with pytest.raises(BlendError, match=r"eta 0\.5"):
        check_chain(read_config(algorithm="draft", sampling__eta=0.5), "ddim")
    check_chain(read_config(algorithm="draft"), "ddim")
    check_chain(read_config(algorithm="draft", draft__through="last"), "flow")


def test_draft_through_the_last_steps_leaves_the_earlier_ones_alone():
    options = {**TRAINERS["draft through all steps"], "draft__steps": 3, "draft__kl_steps": 2}
    shifts, policy, _ = trained(ddim_chain(), 1.0, **options)
    assert torch.equal(shifts[:-3], torch.zeros_like(shifts[:-3]))
    assert distance(shifts[-3:], policy.optimum(1.0)[-3:]) < 0.05


@pytest.mark.parametrize("name", ["dpok", "grpo"])
def test_steps_that_are_not_rewarded_stay_at_the_base_and_the_others_reach_their_optimum(name):
    """Each step's optimum is its own here, so that leaving some out shows in them alone."""
    shifts, policy, _ = trained(ddim_chain(), 1.0, **TRAINERS[name], rewarded_steps=7)
    optimum = policy.optimum(1.0)
    assert distance(shifts[:7], optimum[:7]) < 0.05
    assert shifts[7:].abs().max() < 0.02 * optimum[:7].norm()


def test_draft_gradients_are_the_derivative_through_all_steps():
    policy = ChainPolicy(ddim_chain())
    config = read_config(
        algorithm="draft", kl_weight=1.0, draft__through="last", draft__steps=10, draft__kl_steps=0,
        prompts_per_epoch=4, images_per_prompt=1, sampling__steps=10,
    )  # fmt: skip
    objective = objective_of(config, policy, linear_reward, ["one"], Gathering())
    (minibatch,) = epoch_chunks(config, 0, 1)
    samples, _ = objective.compare([objective.collect(chunk) for chunk in minibatch], 0)
    (forward,) = objective.passes(samples, torch.Generator().manual_seed(0))
    forward()[0].backward()
    # at shifts 0 the KL has no slope, and the reward's is sigma * slope of the last state: kl_weight times the optimum
    torch.testing.assert_close(policy.shifts.grad, -policy.optimum(1.0), rtol=1e-8, atol=1e-8)
