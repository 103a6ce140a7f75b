"""What is measured of a run: how far the bases disagree at a step, and the Jensen gap before one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..errors import BlendError
from ..gaussian import reverse_step

# The spread of the weights exp(r / alpha), relative to their mean, is the factor in Lemma 1's bound. At 1 half of the
# posterior's samples count, n / (1 + variation^2): beyond it a minority decides log E exp, and the mean says little.
MOST_VARIATION = 1.0
_TINY = 1e-30  # in place of a length of 0

Predict = Callable[[Tensor, int], Tensor]
"""denoised(x, step): the guided prediction of x0 at x (batch, ...) before `step` of the run, shaped as x."""


@dataclass(frozen=True)
class Disagreement:
    """The bases at one step, means over the images. m: number of bases.

    step: from 0.  sigma: noise level.  coefficients: (1 + m), base first.  bends: (m,) |D_i - D_0| / |x - D_0|.
    cosines: one per pair of bases, in the order of itertools.combinations; 0 where a basis is the base.
    bend: of the blend, |sum_i c_i Delta_i| / |x - D_0|.  reach: the same over the longest |Delta_i|.
    merged: |M - D| / |D - D_0| of the blend D and the prediction M of all LoRAs added up; None where none was made.
    merged_cosine: of M - D and D - D_0: 1 where merged goes further from the base, -1 where less far, 0 sideways.
    """

    step: int
    sigma: float
    coefficients: tuple[float, ...]
    bends: tuple[float, ...]
    cosines: tuple[float, ...]
    bend: float
    reach: float
    merged: float | None = None
    merged_cosine: float | None = None


@dataclass(frozen=True)
class Gap:
    """The Jensen gap before one step, means over the states x_t. samples: posterior samples of each state.

    kl_weight: the alpha it is taken at.  gap, standard_error: G in nats.  variation: standard deviation of
    exp(r / alpha) over its mean.  least_kl_weight: the alpha at which that is MOST_VARIATION; it is less above.
    """

    step: int
    sigma: float
    name: str
    kl_weight: float
    samples: int
    gap: float
    standard_error: float
    variation: float
    least_kl_weight: float

    @property
    def excess(self) -> float:
        """How many times too strong the tilt is, least_kl_weight / kl_weight; 1 and below is fine."""
        return self.least_kl_weight / self.kl_weight

    @property
    def counting(self) -> float:
        """How many of the samples count, n / (1 + variation^2)."""
        return self.samples / (1 + self.variation**2)


def disagreement(
    x: Tensor,
    denoised: Tensor,
    coefficients: Sequence[float],
    step: int,
    sigma: float,
    merged: Tensor | None = None,
) -> Disagreement:
    """How far the bases are from the base and from each other at x (batch, ...).

    denoised: (1 + m, batch, ...), base first.  coefficients: (1 + m).  merged: (batch, ...), of all LoRAs added up.
    """
    pulls = (denoised[1:] - denoised[0]).flatten(2)
    direction = (x - denoised[0]).flatten(1).norm(dim=1).clamp(min=_TINY)
    lengths = pulls.norm(dim=2)
    weights = torch.as_tensor(coefficients[1:]).to(pulls).view(-1, 1, 1)
    blend = (weights * pulls).sum(0)
    blended = blend.norm(dim=1)
    units = pulls / lengths.clamp(min=_TINY)[..., None]
    cosines = [(units[i] * units[j]).sum(1).mean().item() for i, j in combinations(range(len(pulls)), 2)]
    return Disagreement(
        step,
        float(sigma),
        tuple(float(c) for c in coefficients),
        tuple((lengths / direction).mean(1).tolist()),
        tuple(cosines),
        (blended / direction).mean().item(),
        (blended / lengths.amax(0).clamp(min=_TINY)).mean().item(),
        *(() if merged is None else _merged_gap((merged - denoised[0]).flatten(1), blend)),
    )


def _merged_gap(merged: Tensor, blend: Tensor) -> tuple[float, float]:
    """(|M - D| / |D - D_0|, cosine of M - D and D - D_0) of two ways from the base, M - D_0 and D - D_0 (batch, n)."""
    apart, way = merged - blend, blend.norm(dim=1).clamp(min=_TINY)
    length = apart.norm(dim=1)
    cosine = (apart * blend).sum(1) / (length.clamp(min=_TINY) * way)
    return (length / way).mean().item(), cosine.mean().item()


def posterior_samples(
    denoised: Predict, x: Tensor, sigmas: Sequence[float], step: int, family: str, noise: Callable[[], Tensor]
) -> Tensor:
    """x0 ~ p(. | x), one per row of x (batch, ...): the ancestral run (eta 1) from sigmas[step] down to 0.

    sigmas: (steps + 1,), falling to 0.  noise(): standard normal, shaped as x. A first-order run draws too narrowly, by
    a share of the variance that falls as 1 over the steps left.
    """
    for k in range(step, len(sigmas) - 1):
        x, spread = reverse_step(x, denoised(x, k), sigmas[k], sigmas[k + 1], 1.0, family)
        if spread > 0:
            x = x + spread * noise()
    return x


def jensen_gap(scores: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """(G, its standard error, the variation) of scores (n, ...), each (...): n posterior samples of every state.

    G = log mean exp(r / alpha) - mean r / alpha. The error is the jackknife's, sqrt((n - 1) / n sum_j (G_j - mean G)^2)
    with G_j from all samples but j. Raises BlendError for fewer than 3 samples, and for a KL weight not above 0.
    """
    n = len(scores)
    if n < 3:
        raise BlendError(f"{n} posterior samples came, expected 3 or more: the error comes from leaving one out.")
    if not (math.isfinite(kl_weight) and kl_weight > 0):
        raise BlendError(f"the KL weight is {kl_weight}, expected a number above 0: the one the LoRA was trained with.")
    tilt = scores.cpu().double() / kl_weight
    gap = tilt.logsumexp(0) - math.log(n) - tilt.mean(0)
    without = ~torch.eye(n, dtype=torch.bool, device=tilt.device)
    others = torch.stack([_gap_of(tilt[kept]) for kept in without])
    error = ((n - 1) / n * (others - others.mean(0)).square().sum(0)).sqrt()
    return gap, error, _variation(tilt)


def gap_at(step: int, sigma: float, name: str, scores: Tensor, kl_weight: float, coefficients: Sequence[float]) -> Gap:
    """The gap before `step` of the basis `name`, from scores (n, states) of its reward.

    It is taken at kl_weight, or at what the blend asks for where that is stronger: kl_weight over the sum of the
    bases' coefficients, the alignment.
    """
    asked = kl_weight / max(1.0, 1.0 - coefficients[0])
    gap, error, variation = (value.flatten() for value in jensen_gap(scores, asked))
    error = error.square().sum().sqrt() / len(error)
    least = _least_kl_weight(scores.cpu().double())
    return Gap(
        step, float(sigma), name, asked, len(scores), gap.mean().item(), error.item(), variation.mean().item(), least
    )


def probed_steps(steps: int, count: int) -> list[int]:
    """`count` steps at equal distances from the first on; the last step's posterior is its prediction alone."""
    return sorted({steps * i // count for i in range(count)})


def _gap_of(tilt: Tensor) -> Tensor:
    return tilt.logsumexp(0) - math.log(len(tilt)) - tilt.mean(0)


def _variation(tilt: Tensor) -> Tensor:
    weights = (tilt - tilt.amax(0)).exp()
    return weights.std(0, correction=0) / weights.mean(0)  # so that n / (1 + variation^2) is (sum w)^2 / sum w^2


def _least_kl_weight(scores: Tensor) -> float:
    """The alpha at which the mean variation is MOST_VARIATION; 0 where scores are all equal."""
    spread = scores.std(0).max().item()
    if spread == 0:
        return 0.0
    low, high = spread * 1e-3, spread * 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        too_small = _variation(scores / middle).mean() > MOST_VARIATION
        low, high = (middle, high) if too_small else (low, middle)
    return high
