"""Rewards traded against one another: preferences on a grid, the Pareto front, the hypervolume. Larger is better."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def simplex_grid(rewards: int, parts: int) -> list[tuple[float, ...]]:
    """Every preference whose weights are multiples of 1 / parts: (rewards,) each, the first reward's own first.

    There are binomial(parts + rewards - 1, rewards - 1) of them: parts + 1 for two rewards.
    """
    return [tuple(count / parts for count in counts) for counts in _shares(rewards, parts)]


def _shares(places: int, total: int) -> Iterator[tuple[int, ...]]:
    if places == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        yield from ((first, *rest) for rest in _shares(places - 1, total - first))


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other one dominates, in their order. A point dominates another when it is nowhere
    below it and somewhere above; equal points stand side by side."""
    return [i for i, point in enumerate(points) if not any(_dominates(other, point) for other in points)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume between a reference and what the points dominate; points that are not above it everywhere count not.

    By slices along the last axis: between two neighbouring heights the volume is that of the higher points below it.
    """
    points = [point for point in points if all(a > b for a, b in zip(point, reference, strict=True))]
    if not points:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in points) - reference[0]
    total, floor = 0.0, reference[-1]
    for height in sorted({point[-1] for point in points}):
        above = [point[:-1] for point in points if point[-1] >= height]
        total += (height - floor) * hypervolume(above, reference[:-1])
        floor = height
    return total


@dataclass(frozen=True)
class Scored:
    """One point. label: what it is.  means, errors: (rewards,), the errors 0 where unknown.  picture: a thumbnail."""

    label: str
    means: tuple[float, ...]
    errors: tuple[float, ...]
    picture: Image.Image | None = None

    @classmethod
    def of(cls, label: str, scores: Sequence[Sequence[float]], picture: Image.Image | None = None) -> Scored:
        """scores: of each reward those of all images; errors are standard errors of their means."""
        return cls(label, tuple(map(statistics.fmean, scores)), tuple(map(_standard_error, scores)), picture)


@dataclass(frozen=True)
class Trade:
    """Points under the same rewards. names: (rewards,).  reference: (rewards,), from where hypervolume counts."""

    names: tuple[str, ...]
    points: tuple[Scored, ...]
    reference: tuple[float, ...]

    @property
    def front(self) -> list[int]:
        """Which points no other one dominates."""
        return pareto_front([point.means for point in self.points])

    @property
    def volume(self) -> float:
        """The hypervolume of all points above the reference."""
        return hypervolume([point.means for point in self.points], self.reference)

    def to_json(self) -> str:
        """Points, front and hypervolume."""
        points = [{"label": p.label, "means": p.means, "standard_errors": p.errors} for p in self.points]
        facts = {"rewards": self.names, "reference": self.reference, "hypervolume": self.volume, "front": self.front}
        return json.dumps(facts | {"points": points}, indent=1)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
