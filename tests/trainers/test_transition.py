"""Steps as Gaussians: equal to the schedulers', to torch.distributions and to finite differences, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.trainers.model.chain import check_noise, ddim_steps, flow_steps

from .chain import ddim_chain, ddim_scheduler, flow_chain

CHAINS = {"eps": ddim_chain(50), "v": ddim_chain(50, "v_prediction"), "flow": flow_chain(10)}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("count", [10, 50])
def test_ddim_steps_are_the_schedulers(kind, eta, count):
    scheduler = ddim_scheduler(kind)
    chain = ddim_steps(scheduler, count, eta)
    assert [step.timestep for step in chain] == scheduler.timesteps.tolist()
    x, prediction, noise = normal(3, 2, 4, 3, 3)
    for step in chain:
        ours = step.mean(x, prediction) + step.sigma * noise
        options = {"eta": eta, "variance_noise": noise if eta else None}
        theirs = scheduler.step(prediction, step.timestep, x, **options)
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=0, atol=1e-12)
        torch.testing.assert_close(step.x0(x, prediction), theirs.pred_original_sample, rtol=1e-12, atol=1e-12)


def test_flow_steps_are_the_published_line():
    levels = flow_chain_levels(10)
    x, v = normal(2, 3, 4)
    for step, s, after in zip(flow_chain(10), levels[:-1], levels[1:], strict=True):
        g = 0.7 * math.sqrt(s / (1 - (after if s == 1 else s)))
        d = after - s
        mean = x * (1 + g**2 / (2 * s) * d) + v * (1 + g**2 * (1 - s) / (2 * s)) * d
        torch.testing.assert_close(step.mean(x, v), mean, rtol=1e-6, atol=1e-6)  # the scheduler's levels are float32
        assert step.sigma == pytest.approx(g * math.sqrt(-d), rel=1e-6)


def flow_chain_levels(steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.tolist()


def test_flow_without_noise_is_the_ode():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x, v = normal(2, 3, 4)
    for step in flow_steps(scheduler, 10, 0.0):
        stepped = scheduler.step(v, torch.tensor(step.timestep), x).prev_sample
        torch.testing.assert_close(step.mean(x, v), stepped, rtol=1e-6, atol=1e-6)


def test_the_flow_sde_keeps_the_marginals_of_gaussian_data():
    deviation, x = 0.6, normal(20000, 1, seed=5)
    noise = normal(400, 20000, 1, seed=6)
    from diffusers import FlowMatchEulerDiscreteScheduler

    for k, step in enumerate(flow_steps(FlowMatchEulerDiscreteScheduler(), 400, 0.7)):
        s = step.noise
        velocity = (s - (1 - s) * deviation**2) / ((1 - s) ** 2 * deviation**2 + s**2) * x
        x = step.mean(x, velocity) + step.sigma * noise[k]
    assert x.std().item() == pytest.approx(deviation, rel=0.03)  # of 400 steps; the error falls with their number


@pytest.mark.parametrize("name", CHAINS)
def test_likelihood_and_kl_are_those_of_torch(name):
    x, prediction, reference, following = normal(4, 3, 2, 2, 2)
    for step in CHAINS[name]:
        mean, base = step.mean(x, prediction), step.mean(x, reference)
        gaussian, other = (torch.distributions.Normal(m, step.sigma) for m in (mean, base))
        expected = gaussian.log_prob(following).flatten(1).sum(1)
        torch.testing.assert_close(step.log_prob(following, mean), expected, rtol=1e-10, atol=1e-8)
        kl = torch.distributions.kl_divergence(gaussian, other).flatten(1).sum(1)
        torch.testing.assert_close(step.kl(prediction, reference), kl, rtol=1e-9, atol=1e-10)
        assert torch.equal(step.kl(prediction, prediction), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_those_of_the_closed_form_and_of_finite_differences(name):
    x, prediction, reference = normal(3, 1, 2, 2)
    noise = normal(1, 2, 2, seed=3)
    for step in CHAINS[name][:: max(1, len(CHAINS[name]) // 5)]:
        following = step.mean(x, prediction) + step.sigma * noise
        leaf = prediction.clone().requires_grad_()
        (slope,) = torch.autograd.grad(step.log_prob(following, step.mean(x, leaf)).sum(), leaf)
        torch.testing.assert_close(slope, step.gain * noise / step.sigma, rtol=1e-8, atol=1e-8)
        torch.autograd.gradcheck(lambda p, s=step: s.kl(p, reference), leaf, eps=1e-6, atol=1e-8)
        assert torch.autograd.gradcheck(
            lambda p, s=step, f=following: s.log_prob(f, s.mean(x, p)), leaf, eps=1e-5, rtol=1e-6
        )


@pytest.mark.parametrize("name", CHAINS)
def test_the_mean_log_ratio_of_own_samples_is_the_kl(name):
    step = CHAINS[name][len(CHAINS[name]) // 2]
    count = 40000
    x, prediction = normal(1, 4, seed=1), normal(1, 4, seed=2)
    reference = prediction + 0.7 * step.sigma / abs(step.gain) * normal(1, 4, seed=3)
    mean, base = step.mean(x, prediction), step.mean(x, reference)
    following = mean + step.sigma * normal(count, 4, seed=4)
    ratios = step.log_prob(following, mean) - step.log_prob(following, base)
    error = ratios.std() / count**0.5
    assert abs(ratios.mean() - step.kl(prediction, reference)[0]) < 4 * error


@pytest.mark.parametrize("name", CHAINS)
def test_a_diffused_latent_is_read_back_by_its_target(name):
    clean, noise = normal(2, 2, 3)
    for step in CHAINS[name]:
        x, target = step.diffused(clean, noise)
        torch.testing.assert_close(step.x0(x, target), clean, rtol=1e-9, atol=1e-9)


def test_late_steps_of_stable_diffusion_pay_many_times_more_kl():
    factors = [step.kl_factor for step in CHAINS["eps"]]
    assert factors[-2] == pytest.approx(5.36, abs=0.01) and sorted(factors)[25] == pytest.approx(0.088, abs=0.003)


def test_steps_without_noise_are_refused():
    with pytest.raises(BlendError, match="adds no noise"):
        check_noise(ddim_steps(ddim_scheduler(), 10, 0.0))
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    with pytest.raises(BlendError, match=r"step 10 of 10 adds no noise.*set_alpha_to_one"):
        check_noise(ddim_steps(scheduler, 10, 1.0))
    check_noise(CHAINS["eps"])


def test_schedulers_and_counts_that_are_no_such_chain_are_refused():
    with pytest.raises(BlendError, match="clip_sample"):
        ddim_steps(DDIMScheduler(), 10, 1.0)
    with pytest.raises(BlendError, match="divisor"):
        ddim_steps(ddim_scheduler(), 30, 1.0)
    with pytest.raises(BlendError, match="'sample'"):
        ddim_steps(ddim_scheduler("sample"), 10, 1.0)
