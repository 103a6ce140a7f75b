"""Scores of the same prompts and noise compared: intervals by the bootstrap, and the difference of two ways.

Prompts and seeds are drawn with replacement, independently of each other: images of one prompt (or seed) share what is
easy or hard about it, so images are not drawn one by one. Everything that is compared is drawn in the same way, which
makes differences paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..diagnostics.ways import Estimate, ScoredWays, check_pairs
from .combined import weighted

COUNT = 4000  # then the ends of an interval move by less than a tenth of its length
FIRST = 0  # the seed
WEIGHTED = "the weighted reward"


class Draws:
    """Draws of prompts and seeds."""

    def __init__(self, prompts: int, seeds: int, count: int = COUNT):
        generator = np.random.default_rng(FIRST)
        self.prompts, self.seeds = (
            generator.multinomial(number, np.full(number, 1 / number), count) / number for number in (prompts, seeds)
        )

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean in every draw, (..., count). values: (..., prompts, seeds)."""
        return np.einsum("bp,...ps,bs->...b", self.prompts, values, self.seeds, optimize=True)

    def mean(self, values: np.ndarray) -> Estimate:
        """values: (prompts, seeds)."""
        return estimate(values.mean(), self.means(values))


def estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A value of all images with the ends of its 95% percentile interval. drawn: (count,), the same of every draw."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def scored_ways(
    exact: Mapping[str, Tensor], merged: Mapping[str, Tensor], weights: Sequence[float]
) -> tuple[ScoredWays, ...]:
    """Every reward's difference, and the weighted reward's behind them where there are several.

    exact, merged: scores (prompts, seeds) of each reward.  weights: one per reward. Raises BlendError as check_pairs.
    """
    check_pairs(next(iter(exact.values())).numel())
    if len(exact) > 1:
        exact, merged = (
            {**scores, WEIGHTED: weighted(list(scores.values()), list(weights))} for scores in (exact, merged)
        )
    return tuple(_difference(name, scores, merged[name]) for name, scores in exact.items())


def _difference(name: str, exact: Tensor, merged: Tensor) -> ScoredWays:
    first, second = (scores.detach().cpu().double().numpy() for scores in (exact, merged))
    difference = Draws(*first.shape).mean(first - second)
    return ScoredWays(name, first.size, float(first.mean()), float(second.mean()), difference)
