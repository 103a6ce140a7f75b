"""Merged or exact: what a run, and rewards of images made both ways, say of which to take, in words for every host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BlendError
from .measures import Disagreement

SAME = 0.05  # of the blend's way from the base: below it merged and exact give the same image to the eye
SIDEWAYS = 0.5  # a cosine between its two signs is nearer to a right angle than to the blend's way
FEWEST_PAIRS = 8  # of images: of fewer the bootstrap sees too little of the spread, and its intervals are too narrow
EQUAL = "Both are equal here: take merged, it costs one evaluation per step."


@dataclass(frozen=True)
class Estimate:
    """A value of all images with the ends of its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoredWays:
    """A reward of images made by exact and by merged evaluation from the same noise. pairs: images of each way.

    exact, merged: means.  difference: exact - merged, with its interval, pair by pair.
    """

    name: str
    pairs: int
    exact: float
    merged: float
    difference: Estimate

    @property
    def better(self) -> str:
        """The way that scores higher beyond the interval, exact or merged; "" where none does."""
        if self.difference.low > 0:
            return "exact"
        return "merged" if self.difference.high < 0 else ""

    def __str__(self) -> str:
        low, high = self.difference.low, self.difference.high
        if self.better == "merged":
            low, high = -high, -low
        if not self.better:
            result = f"no difference beyond the interval (exact - merged: {low:+.3g} to {high:+.3g}"
        else:
            result = f"{self.better} scores higher by {abs(self.difference.mean):.3g} ({low:.3g} to {high:.3g}"
        return f"{self.name}: {result}, 95% of {self.pairs} pairs of images)."

    def row(self) -> list[str]:
        """As SCORE_HEADING has it."""
        difference = self.difference
        numbers = [f"{number:.4g}" for number in (self.exact, self.merged)]
        return [self.name, *numbers, f"{difference.mean:+.3g}", f"{difference.low:+.3g} to {difference.high:+.3g}"]


SCORE_HEADING = ["reward", "exact", "merged", "exact - merged", "95% interval"]


def check_pairs(count: int) -> None:
    """Raise BlendError where so few images of each way have no interval."""
    if count < FEWEST_PAIRS:
        raise BlendError(
            f"{count} images of each way are to be scored, expected {FEWEST_PAIRS} or more: fewer have no interval to "
            "trust. Ask for more images."
        )


def way_to_take(steps: Sequence[Disagreement], scores: Sequence[ScoredWays] = ()) -> str:
    """In words, whether merged evaluation would do; "" where that was not measured. Steps of the base do not count.

    The last of the scores decides, where there are any: it is the weighted reward, or the only one.
    """
    measured = [step for step in steps if step.merged is not None and any(step.coefficients[1:])]
    if not measured:
        return ""
    most = max(measured, key=lambda step: step.merged or 0.0)
    same = (most.merged or 0.0) <= SAME
    apart = f"at most {most.merged:.1%}" if same else f"up to {most.merged:.0%}"
    where = "" if same else f" (at step {most.step + 1}, where {_direction(most.merged_cosine or 0.0)})"
    distance = f"Merged or exact: they differ by {apart} of the blend's way from the base{where}."
    if scores:
        return "\n".join([distance, *map(str, scores), _decided(scores[-1])])
    return f"{distance} {EQUAL if same else _UNDECIDED}"


_UNDECIDED = (
    "Their images are not the same, and which one scores higher does not follow from that: let rewards score some "
    "images of both (diffusion-blend diagnose --score, or rewards connected to Blend Diagnostics)."
)


def _decided(score: ScoredWays) -> str:
    if score.better == "exact":
        return f"Take exact: by {score.name} it is better than merged, beyond the interval."
    if score.better == "merged":
        return f"Take merged: by {score.name} it is better than exact, and it costs one evaluation per step."
    return (
        f"By {score.name} these images show no difference: take merged, it costs one evaluation per step. More images "
        "narrow the interval."
    )


def _direction(cosine: float) -> str:
    """What a cosine of merged - exact and exact - base says."""
    if abs(cosine) < SIDEWAYS:
        return f"merged goes sideways, cosine {cosine:+.2f}"
    return f"merged goes {'further' if cosine > 0 else 'less far'} from the base, cosine {cosine:+.2f}"
