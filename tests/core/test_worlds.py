"""The worlds themselves: their denoisers against autograd, their tilts against the density ratio they claim."""

import pytest
import torch

from .worlds import (
    FAMILIES,
    covariance,
    from_eps,
    from_v,
    from_velocity,
    gaussian,
    mixture,
    normal,
    sample,
    schedule,
    signal,
    start,
    to_eps,
    to_v,
    to_velocity,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}  # float64 with a few linear solves in between


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("world", [gaussian(), mixture(size=5)], ids=["gaussian", "mixture"])
def test_the_denoiser_is_tweedies_formula(world, sigma, family):
    x = normal(7, world.size, seed=3).requires_grad_()
    (score,) = torch.autograd.grad(world.log_density(x, sigma, family).sum(), x)
    expected = (x + sigma**2 * score) / signal(sigma, family)
    torch.testing.assert_close(world.denoised(x, sigma, family), expected.detach(), **ROUNDING)


@pytest.mark.parametrize("world", [gaussian(), mixture(size=5)], ids=["gaussian", "mixture"])
def test_a_tilted_world_has_the_density_of_the_base_times_the_exponential_of_the_reward(world):
    x0 = normal(9, world.size, seed=4)
    direction, centre = normal(world.size, seed=5), normal(world.size, seed=6)
    curvature, kl_weight = covariance(world.size, 7), 0.7
    away = x0 - centre
    for tilted, reward in (
        (world.tilted_linear(direction, kl_weight), x0 @ direction),
        (world.tilted_quadratic(centre, curvature, kl_weight), -0.5 * (away @ curvature * away).sum(1)),
    ):
        log_ratio = tilted.log_density(x0, 0.0) - world.log_density(x0, 0.0) - reward / kl_weight
        torch.testing.assert_close(log_ratio, log_ratio[:1].expand(9), **ROUNDING)  # the log normaliser, at every x0
        assert tilted.weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_parameterisations_convert_there_and_back():
    x, denoised = normal(4, 6, seed=8), normal(4, 6, seed=9)
    for sigma in (0.1, 0.6, 0.9):
        for family in FAMILIES:
            eps = to_eps(denoised, x, sigma, family)
            torch.testing.assert_close(from_eps(eps, x, sigma, family), denoised, **ROUNDING)
            torch.testing.assert_close(signal(sigma, family) * denoised + sigma * eps, x, **ROUNDING)
        torch.testing.assert_close(from_v(to_v(denoised, x, sigma), x, sigma), denoised, **ROUNDING)
        velocity = to_velocity(denoised, x, sigma)
        torch.testing.assert_close(from_velocity(velocity, x, sigma), denoised, **ROUNDING)
        torch.testing.assert_close(velocity, to_eps(denoised, x, sigma, "flow") - denoised, **ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_a_worlds_denoiser_samples_that_world(family, eta):
    world, count = gaussian(size=3, seed=20), 6000
    x = start(count, 3, family, seed=21)
    x0 = sample(lambda x, sigma, step: world.denoised(x, sigma, family), x, schedule(100, family), family, eta, seed=22)
    spread = world.covariances[0].diagonal().sqrt()
    # Five standard errors, and 2 % of a deviation for the finite steps and the finite first sigma.
    assert bool(((x0.mean(0) - world.means[0]).abs() < (5 / count**0.5 + 0.02) * spread).all())
    assert bool(((x0.std(0) / spread - 1).abs() < 5 / (2 * count) ** 0.5 + 0.05).all())
