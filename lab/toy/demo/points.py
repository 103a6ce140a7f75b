"""The demo's points: what is sampled, and what comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

REWARDS = ("calm", "vivid")  # the two that are swept, from the first to the second
# What the report calls each method, and its evaluation.
SWEPT = {"soup": "merged", "mpa": "exact", "random": "random", "stratified": "stratified"}


@dataclass(frozen=True)
class Setting:
    """One point of the demo. weights: preference over REWARDS."""

    method: str
    weights: tuple[float, ...]
    alignment: float = 1.0

    @property
    def evaluation(self) -> str:
        """How pipelines calls it."""
        return {"base": "base", "single": "exact", "kla": "exact"}.get(self.method) or SWEPT[self.method]


@dataclass
class Point:
    """What one setting gave. images (n, 3, h, w) and scores (n,) per reward stay out of the report."""

    setting: Setting
    images: Tensor
    scores: dict[str, Tensor]
    evaluations_per_step: float
    seconds_per_image: float
    rmse_to_mpa: float | None = field(default=None)

    @property
    def rewards(self) -> dict[str, float]:
        """Mean of each reward."""
        return {name: scores.mean().item() for name, scores in self.scores.items()}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Standard error of each mean."""
        return {name: standard_error(scores) for name, scores in self.scores.items()}

    def weighted(self) -> Tensor:
        """The weighted reward of each image, (n,)."""
        pairs = zip(self.setting.weights, REWARDS, strict=True)
        return sum(weight * self.scores[name] for weight, name in pairs)

    def row(self) -> dict:
        """The point as report.json holds it."""
        row = asdict(self.setting) | {"rewards": self.rewards, "standard_errors": self.standard_errors}
        row |= {"evaluations_per_step": self.evaluations_per_step, "seconds_per_image": self.seconds_per_image}
        return row | {"n": len(self.images), "rmse_to_mpa": self.rmse_to_mpa}


def standard_error(values: Tensor) -> float:
    """Of the mean of these values."""
    return (values.std() / len(values) ** 0.5).item()
