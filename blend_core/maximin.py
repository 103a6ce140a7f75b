"""A preference that moves to the reward an image falls short in: Chebyshev's scalarisation, solved during the run.

    maximise   min_i z_i - KL,      z_i = (r_i - target_i) / scale_i

Over distributions of images this is a game: max_p min_w sum_i w_i E_p[z_i] - KL(p || base) = min_w V(w), w on the
simplex, where the largest p for a given w is the blend at w. V is convex and its gradient is the blend's own E[z_i], so
exponentiated gradient descent finds the w of the largest worst reward:

    w_i <- w_i exp(-rate z_i) / sum_j w_j exp(-rate z_j)

(Freund and Schapire 1999, Adaptive game playing using multiplicative weights; with losses of groups it is Algorithm 1
of arXiv 1911.08731.) The rewards of the predicted x0 stand for E[z_i]: exact for linear rewards on Gaussian data, and
better elsewhere the lower the noise is. What early weights missed, later ones make up for, at growing cost.
With different scales z is no gradient in these w any more; where the weights rest, all rewards with a weight are still
attained equally, and none without one less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .blend import blend
from .errors import BlendError
from .plan import UNNAMED, Call, Evaluate, Plan, cut, per_step


def attained(scores: Tensor, targets: Sequence[float], scales: Sequence[float]) -> Tensor:
    """z_i = (r_i - target_i) / scale_i of scores (..., m), float64. Raises BlendError for a score that is no number."""
    if not bool(scores.isfinite().all()):
        raise BlendError(
            "a reward gave a score that is no number, so it is unknown which reward is worst. Check the VAE and its "
            "precision, or leave that reward out."
        )
    return (scores.double() - scores.new_tensor(targets, dtype=torch.float64)) / scores.new_tensor(
        scales, dtype=torch.float64
    )


def worse_first(preference: Tensor, attained: Tensor, rate: float) -> Tensor:
    """w_i exp(-rate z_i), normalised over the last axis: the preference (..., m) after one step of descent on V.

    attained: z, shaped as preference; where all are equal nothing moves.  rate: above 0; a difference of 1 / rate in z
    moves the odds of two rewards by e.  A weight of 0 stays 0.
    """
    counted = preference > 0
    worst = attained.masked_fill(~counted, torch.inf).amin(-1, keepdim=True)
    moved = torch.where(counted, preference * torch.exp(-rate * (attained - worst)), 0.0)
    return moved / moved.sum(-1, keepdim=True)


@dataclass(frozen=True)
class PersonalPlan(Plan):
    """An exact evaluation in which every image has its own coefficients, (steps, k, batch)."""

    coefficients: Tensor

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Call = UNNAMED) -> Tensor:
        """The blended prediction of `step`, (rows, ...). Raises BlendError for a part of the batch."""
        images = images or self.batch
        if images != self.batch:
            raise BlendError(
                f"a step evaluates {images} images at once where the batch has {self.batch}, so it is unknown which "
                "weights belong to which. Sample one image at a time."
            )
        variants, _ = self.active(step)
        predictions = evaluate(variants)
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        coefficients = self.coefficients[step, self.weights[step] != 0].to(predictions.device, dtype)
        coefficients = coefficients.repeat(1, predictions.shape[1] // images)
        coefficients = coefficients.view(*coefficients.shape, *[1] * (predictions.dim() - 2))
        return blend(coefficients, predictions).to(predictions.dtype)


def personal(coefficients: Tensor, steps: int, until: float = 1.0) -> PersonalPlan:
    """The plan of coefficients (batch, 1 + m), base first, one row per image; after `until` of the run the base."""
    table = torch.stack([per_step(cut(row, steps, until), steps) for row in coefficients.double()], dim=-1)
    used = (table != 0).any(-1)
    variants = used.any(0).nonzero().flatten()
    return PersonalPlan(
        variants=variants[None, :, None].expand(steps, -1, table.shape[-1]),
        weights=used[:, variants].double(),
        coefficients=table[:, variants],
    )
