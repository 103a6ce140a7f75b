"""Reverse steps as Gaussians, and their fusion (MSDDA, arXiv 2604.14379).

A step from sigma to the lower sigma_next draws x_next ~ N(mean, spread^2 I). Two families of noise:

    ve     x = x0 + sigma n                     eps and v models, as k-diffusion has them
    flow   x = (1 - sigma) x0 + sigma n         rectified flow

eta is how ancestral the step is: 0 deterministic, 1 as the forward process has it. Bases that were trained at
different eta have different spreads, and the more certain one counts more:

    1 / spread^2 = sum_i c_i / s_i^2,      mean = spread^2 sum_i c_i mean_i / s_i^2

the normalised product of the N(mean_i, s_i^2 I)^{c_i}. With equal s_i it is the blended ancestral step, because means
are affine in denoised and coefficients sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import BlendError

FAMILIES = ("ve", "flow")


def basis_etas(typed: Sequence[float], stated: Sequence[float | None], base_eta: float = 1.0) -> tuple[float, ...]:
    """(1 + m,) eta of each basis, base first: what was given, else what its file states, else 1 (ancestral).

    typed: m numbers, or none.  stated: m numbers, None where a file says nothing. Raises BlendError for another count,
    and for an eta that is not above 0 and up to 1.
    """
    if typed and len(typed) != len(stated):
        raise BlendError(f"{len(typed)} etas came for {len(stated)} reward LoRAs. Give one each, or leave them empty.")
    etas = (base_eta, *(typed or (eta or 1.0 for eta in stated)))
    if not all(0 < eta <= 1 for eta in etas):
        raise BlendError(
            f"the etas are {', '.join(f'{eta:g}' for eta in etas)} (base first), expected above 0 and up to 1: a "
            "deterministic step is no Gaussian that could be fused. 1 is ancestral."
        )
    return etas


def reverse_step(
    x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, eta: float, family: str
) -> tuple[Tensor, float]:
    """(mean, spread) of the ancestral step from sigma to sigma_next < sigma; mean is shaped as x.

    ve: up = min(sigma_next, eta sigma_next sqrt(1 - sigma_next^2 / sigma^2)), down^2 = sigma_next^2 - up^2,
    mean = D + (x - D) down / sigma, spread = up (k-diffusion's).  flow: down = sigma_next (1 + (sigma_next / sigma - 1)
    eta), mean = (1 - sigma_next) / (1 - down) (x down / sigma + (1 - down / sigma) D), spread^2 = sigma_next^2 -
    (down (1 - sigma_next) / (1 - down))^2. At sigma_next = 0 the mean is D and the spread 0.
    """
    if family == "ve":
        spread = min(sigma_next, eta * sigma_next * math.sqrt(max(1 - (sigma_next / sigma) ** 2, 0.0)))
        down = math.sqrt(sigma_next**2 - spread**2)
        return denoised + (x - denoised) * (down / sigma), spread
    down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    shrink = (1 - sigma_next) / (1 - down)
    mean = shrink * (down / sigma * x + (1 - down / sigma) * denoised)
    return mean, math.sqrt(max(sigma_next**2 - (down * shrink) ** 2, 0.0))


def vanishing_spread(eta: float, family: str) -> float:
    """The limit of spread / sigma_next as sigma_next falls to 0: eta (ve), sqrt(eta (2 - eta)) (flow).

    It tells how the certainties of bases compare at the last step, where every spread is 0.
    """
    return eta if family == "ve" else math.sqrt(eta * (2 - eta))


def fusion_weights(
    spreads: Sequence[float], coefficients: Sequence[float | Tensor]
) -> tuple[list[float | Tensor], float | Tensor]:
    """(weights of the means, spread) of the normalised product of N(mean_i, s_i^2)^{c_i}; the weights sum to 1.

    coefficients: numbers, or maps over latent positions, whose weights and spread are maps of the same shape.
    Raises BlendError for a spread of 0, and where the precision sum c_i / s_i^2 is not above 0: then there is no such
    Gaussian.
    """
    if any(not spread > 0 for spread in spreads):
        raise BlendError(
            "a basis has eta 0, so its step is no Gaussian that could be fused. Give every basis an eta above 0 (1 is "
            "ancestral), or use a blended sampler without MSDDA for a deterministic run."
        )
    precisions = [c / spread**2 for c, spread in zip(coefficients, spreads, strict=True)]
    total = sum(precisions)
    least = float(total.min()) if isinstance(total, Tensor) else total
    if not least > 0:
        listed = ", ".join("a map" if isinstance(c, Tensor) else f"{c:.3g}" for c in coefficients)
        raise BlendError(
            f"the fused step has the precision {least:.3g}, expected one above 0: with these eta the coefficients "
            f"({listed}, base first) take away more certainty than there is. Lower alignment, or set the bases' eta "
            "nearer to each other."
        )
    return [precision / total for precision in precisions], 1 / total**0.5


def fused_step(
    x: Tensor,
    denoised: Sequence[Tensor],
    sigma: float,
    sigma_next: float,
    etas: Sequence[float],
    coefficients: Sequence[float | Tensor],
    family: str,
) -> tuple[Tensor, float | Tensor]:
    """(mean, spread) of MSDDA's step: the fusion of each basis's own reverse step at x.

    denoised: one prediction per basis, shaped as x.  etas, coefficients: one per basis; coefficients sum to 1, and are
    numbers or maps that broadcast to x, for which spread is a map too: every position has a fusion of its own.
    The last step (sigma_next = 0) has no noise; its weights are the limit of those before. A step of no length, which
    some schedules end with, stays at x.
    """
    if sigma_next == sigma:
        return x, 0.0
    steps = [reverse_step(x, d, sigma, sigma_next, eta, family) for d, eta in zip(denoised, etas, strict=True)]
    last = sigma_next == 0
    spreads = [vanishing_spread(eta, family) for eta in etas] if last else [spread for _, spread in steps]
    weights, spread = fusion_weights(spreads, coefficients)
    means = (weight * mean for weight, (mean, _) in zip(weights, steps, strict=True))
    mean = sum(means, torch.zeros(()))
    return mean, 0.0 if last else spread
