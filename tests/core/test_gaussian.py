"""Reverse steps and MSDDA's fusion, against the forward process, analytic products and blended ancestral sampling."""

import math
from itertools import pairwise

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.gaussian import FAMILIES, fused_step, fusion_weights, reverse_step, vanishing_spread
from diffusion_blend.blend_core.regions import painted

from .worlds import gaussian, normal, sample, schedule, seeded, signal, start

COEFFICIENTS = (-0.3, 0.5, 0.8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.3, 0.8, 1.0])
def test_a_step_keeps_the_noise_level_where_x0_is_known(family, eta):
    # With D = x0 exactly, x_next must be distributed as the forward process at sigma_next: a x0 + sigma_next n.
    x0, sigma, after = 1.7, 0.8, 0.35
    x = torch.tensor([signal(sigma, family) * x0 + sigma * n for n in (-1.0, 0.0, 2.0)], dtype=torch.float64)
    mean, spread = reverse_step(x, torch.full_like(x, x0), sigma, after, eta, family)
    noise_kept = (mean - signal(after, family) * x0) / ((x - signal(sigma, family) * x0) / sigma)
    kept = noise_kept[0].item()
    assert kept == pytest.approx(noise_kept[2].item())
    assert kept**2 + spread**2 == pytest.approx(after**2, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_to_zero_is_the_prediction(family):
    x, denoised = normal(2, 3, seed=1), normal(2, 3, seed=2)
    mean, spread = reverse_step(x, denoised, 0.4, 0.0, 1.0, family)
    assert spread == 0
    torch.testing.assert_close(mean, denoised, rtol=0, atol=1e-15)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_the_vanishing_spread_is_the_limit(family, eta):
    x = torch.zeros(1, dtype=torch.float64)
    ratios = [reverse_step(x, x, 0.5, after, eta, family)[1] / after for after in (1e-4, 1e-6)]
    assert ratios[1] == pytest.approx(vanishing_spread(eta, family), rel=1e-5)
    assert abs(ratios[1] - vanishing_spread(eta, family)) < abs(ratios[0] - vanishing_spread(eta, family)) + 1e-12


def test_fusion_is_the_normalised_product_of_the_powers():
    means, spreads = (0.4, -1.0, 2.0), (0.5, 0.8, 0.6)
    weights, spread = fusion_weights(spreads, COEFFICIENTS)
    assert math.fsum(weights) == pytest.approx(1)
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    points = torch.linspace(-12, 12, 80001, dtype=torch.float64)
    log_density = sum(-c * (points - m) ** 2 / (2 * s**2) for c, m, s in zip(COEFFICIENTS, means, spreads, strict=True))
    density = torch.softmax(log_density, 0)
    centre = (density * points).sum()
    assert centre.item() == pytest.approx(mean, abs=1e-9)
    assert ((density * (points - centre) ** 2).sum() ** 0.5).item() == pytest.approx(spread, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_with_equal_eta_a_run_is_the_blended_ancestral_run(family, eta):
    base = gaussian()
    worlds = [base, *(base.tilted_linear(normal(6, seed=s), 2.0) for s in (5, 6))]
    sigmas, x = schedule(12, family), start(8, 6, family)

    def blended(x, sigma, step):
        return sum(c * world.denoised(x, sigma, family) for c, world in zip(COEFFICIENTS, worlds, strict=True))

    expected = sample(blended, x, sigmas, family, eta, seed=3)
    fused = run(worlds, x, sigmas, [eta] * 3, family, seed=3)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-12)


def run(worlds, x, sigmas, etas, family, seed):
    generator = seeded(seed)
    for now, after in pairwise(sigmas):
        denoised = [world.denoised(x, now, family) for world in worlds]
        mean, spread = fused_step(x, denoised, now, after, etas, COEFFICIENTS, family)
        x = mean + spread * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return x


@pytest.mark.parametrize("family", FAMILIES)
def test_with_unequal_eta_the_more_certain_basis_counts_more(family):
    # One step on Gaussian worlds: each basis's step is a Gaussian known in closed form, and so is their product.
    worlds = [gaussian(seed=s) for s in (1, 2)]
    x, sigma, after, etas, coefficients = normal(3, 6, seed=9), 0.7, 0.4, (1.0, 0.4), (0.5, 0.5)
    denoised = [world.denoised(x, sigma, family) for world in worlds]
    mean, spread = fused_step(x, denoised, sigma, after, etas, coefficients, family)
    steps = [reverse_step(x, d, sigma, after, eta, family) for d, eta in zip(denoised, etas, strict=True)]
    product = _product([m for m, _ in steps], [s for _, s in steps], coefficients)
    torch.testing.assert_close(mean, product[0], rtol=0, atol=1e-12)
    assert spread == pytest.approx(product[1], abs=1e-14)
    (first, wide), (second, narrow) = steps
    assert narrow < wide and spread < wide
    assert (mean - second).norm() < (mean - first).norm()


def _product(means, spreads, coefficients):
    """Of multivariate normals, through torch.distributions' precision matrices."""
    size = means[0].shape[-1]
    normals = [
        torch.distributions.MultivariateNormal(m, covariance_matrix=s**2 * torch.eye(size, dtype=m.dtype))
        for m, s in zip(means, spreads, strict=True)
    ]
    precision = sum(c * n.precision_matrix for c, n in zip(coefficients, normals, strict=True))
    right = sum(
        c * (n.precision_matrix @ n.mean[..., None])[..., 0] for c, n in zip(coefficients, normals, strict=True)
    )
    covariance = torch.linalg.inv(precision)
    return (covariance @ right[..., None])[..., 0], covariance[0, 0, 0].item() ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_step_is_the_limit_of_small_ones(family):
    x, denoised = normal(2, 4, seed=1), [normal(2, 4, seed=s) for s in (2, 3, 4)]
    etas = (0.5, 1.0, 0.8)
    last, silent = fused_step(x, denoised, 0.3, 0.0, etas, COEFFICIENTS, family)
    near, spread = fused_step(x, denoised, 0.3, 1e-7, etas, COEFFICIENTS, family)
    assert silent == 0 and 0 < spread < 1e-6
    torch.testing.assert_close(last, near, rtol=0, atol=1e-5)


OTHER = (0.4, 0.9, -0.3)  # another blend of the same bases
REGION_ETAS = (0.5, 1.0, 0.8)


def painted_step(mask, after, family):
    """(mean, spread) of one step on (2, 5, 4, 6) latents: COEFFICIENTS elsewhere, OTHER where the mask is."""
    x, denoised = normal(2, 5, 4, 6, seed=1), [normal(2, 5, 4, 6, seed=s) for s in (2, 3, 4)]
    layers = [torch.tensor(c, dtype=torch.float64)[None] for c in (COEFFICIENTS, OTHER)]
    maps = list(painted(layers, [mask], (4, 6), 2).coefficients(0, x, 2))
    return fused_step(x, denoised, 0.7, after, REGION_ETAS, maps, family), (x, denoised)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("after", [0.4, 0.0])
@pytest.mark.parametrize(("value", "blend"), [(1.0, OTHER), (0.0, COEFFICIENTS)])
def test_a_mask_of_ones_is_the_painted_blend_and_one_of_zeros_the_other(family, after, value, blend):
    (mean, spread), (x, denoised) = painted_step(torch.full((1, 8, 12), value), after, family)
    expected, single_spread = fused_step(x, denoised, 0.7, after, REGION_ETAS, blend, family)
    assert torch.equal(mean, expected)
    assert torch.equal(torch.as_tensor(spread * torch.ones_like(x)), single_spread * torch.ones_like(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("after", [0.4, 0.0])
def test_every_position_has_the_fusion_of_its_own_coefficients(family, after):
    mask = torch.rand(2, 4, 6, generator=seeded(7))
    (mean, spread), (x, denoised) = painted_step(mask, after, family)
    wide = spread * torch.ones_like(x)
    for image, row, column in ((0, 0, 0), (1, 3, 2)):
        share = mask[image, row, column].double().item()
        blend = [(1 - share) * c + share * other for c, other in zip(COEFFICIENTS, OTHER, strict=True)]
        here = (image, slice(None), row, column)
        at, single_spread = fused_step(x[here], [d[here] for d in denoised], 0.7, after, REGION_ETAS, blend, family)
        torch.testing.assert_close(mean[here], at, rtol=0, atol=1e-12)
        torch.testing.assert_close(wide[here], single_spread * torch.ones_like(at), rtol=0, atol=1e-12)


def test_a_position_without_precision_is_refused():
    with pytest.raises(BlendError, match="a map, a map, base first"):
        fusion_weights([0.2, 1.0], [torch.tensor([0.5, -1.0]), torch.tensor([0.5, 2.0])])


def test_steps_that_cannot_be_fused_are_refused():
    with pytest.raises(BlendError, match="eta 0"):
        fusion_weights([0.0, 1.0], [0.5, 0.5])
    with pytest.raises(BlendError, match="Lower alignment"):
        fusion_weights([0.2, 1.0], [-1.0, 2.0])
