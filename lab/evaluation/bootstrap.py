"""Intervals by the bootstrap: prompts and seeds are drawn with replacement, independently of each other.

Images of one prompt (or seed) share what is easy or hard about it, so images are not drawn one by one. Everything that
is compared is drawn in the same way, which makes differences paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COUNT = 4000  # then the ends of an interval move by less than a tenth of its length
FIRST = 0  # the seed


@dataclass(frozen=True)
class Estimate:
    """A value of all images with the ends of its 95% percentile interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: np.ndarray) -> Estimate:
        """drawn: (count,), the same value of every draw."""
        low, high = np.quantile(drawn, (0.025, 0.975))
        return cls(float(value), float(low), float(high))


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
        return Estimate.of(values.mean(), self.means(values))
