"""Coefficients as functions of progress: one reward for the composition, another for the texture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blend import Blend, parse_numbers
from .errors import BlendError
from .plan import check_until, cut, kept_steps

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "smooth": lambda t: t * t * (3 - 2 * t),  # no jump in speed at the keyframes
    "step": lambda t: 0.0,  # stays until the next keyframe is reached
}
_ROUNDING = 1e-9  # progress of a step that meets a keyframe up to float rounding


@dataclass(frozen=True)
class Schedule:
    """Blends of the same bases at points of progress, and how the coefficients go from one to the next.

    positions: rising, 0 is the first step and 1 the last; before the first and after the last, coefficients stay.
    curve: a name of CURVES. Between two keyframes c = c_a + curve(t) (c_b - c_a): the sum stays 1.
    until: the share of the run's steps that the blends act in; the base model makes the steps after it.
    """

    positions: tuple[float, ...]
    blends: tuple[Blend, ...]
    curve: str = "linear"
    until: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "positions", tuple(map(float, self.positions)))
        object.__setattr__(self, "blends", tuple(self.blends))
        if self.curve not in CURVES:
            raise BlendError(f"the curve is {self.curve!r}, expected one of {', '.join(CURVES)}.")
        if not self.blends or len(self.positions) != len(self.blends):
            raise BlendError(
                f"{len(self.positions)} positions ({_listed(self.positions)}) came for {len(self.blends)} blends. Give "
                "one position per blend, or none for even ones."
            )
        in_range = all(0 <= position <= 1 for position in self.positions)
        if not in_range or any(b <= a for a, b in zip(self.positions, self.positions[1:], strict=False)):
            raise BlendError(
                f"the positions are {_listed(self.positions)}, expected numbers from 0 (the first step) to 1 (the "
                "last), each above the one before. Correct them, such as 0, 0.5, 1."
            )
        check_until(self.until)
        if len({blend.names for blend in self.blends}) > 1:
            raise BlendError("the blends of a schedule are of different bases. Express all over the same bases.")

    @classmethod
    def even(cls, blends: Sequence[Blend], curve: str = "linear") -> Schedule:
        """Keyframes at equal distances, the first at 0 and the last at 1."""
        last = max(len(blends) - 1, 1)
        return cls(tuple(i / last for i in range(len(blends))), tuple(blends), curve)

    def coefficients(self, steps: int) -> Tensor:
        """(steps, 1 + m) float64, base first; every row sums to 1."""
        return cut(torch.stack([self._at(step / max(steps - 1, 1)) for step in range(steps)]), steps, self.until)

    def _at(self, progress: float) -> Tensor:
        table = [torch.tensor(blend.coefficients, dtype=torch.float64) for blend in self.blends]
        after = next((i for i, p in enumerate(self.positions) if p > progress + _ROUNDING), len(table))
        if after in (0, len(table)):
            return table[0 if after == 0 else -1]
        start, end = self.positions[after - 1], self.positions[after]
        share = CURVES[self.curve]((progress - start) / (end - start))
        return table[after - 1] + share * (table[after] - table[after - 1])

    def mapped(self, change: Callable[[Blend], Blend]) -> Schedule:
        """The same schedule with every keyframe's blend changed."""
        return replace(self, blends=tuple(map(change, self.blends)))

    def aligned(self, alignment: float) -> Schedule:
        """The same schedule at `alignment` times the present distance from the base (DB-KLA of every keyframe)."""
        return self.mapped(lambda blend: blend.aligned(alignment))

    def cut(self, until: float) -> Schedule:
        """The same schedule up to the share `until` of the run, or to its present end where that comes first."""
        check_until(until)
        return replace(self, until=min(self.until, until))

    @property
    def is_constant(self) -> bool:
        """Whether every step has the same coefficients."""
        return len(self.blends) == 1 and self.until == 1

    def formula(self, steps: int = 0) -> str:
        """The keyframes as a person reads them, such as `0%: 1 calm -> 100%: 1 vivid (linear)`, and where they end.

        steps: of the run; 0 where they are not known.
        """
        return self._keyframes() + self._ending(steps)

    def describe(self) -> str:
        """The formula, with every coefficient where there is one blend only."""
        only, *others = self.blends
        if others:
            return self.formula()
        formula, *lines = only.describe().splitlines()
        return "\n".join([formula + self._ending(0), *lines])

    def _ending(self, steps: int) -> str:
        """From where on the base model is alone; nothing where the blends act to the end."""
        if self.until == 1:
            return ""
        if not steps:
            return f"; the base alone after {100 * self.until:.4g}% of the steps"
        return f"; the base alone in the last {steps - kept_steps(self.until, steps)} of {steps} steps"

    def _keyframes(self) -> str:
        if len(self.blends) == 1:
            return self.blends[0].formula()
        frames = (f"{100 * p:g}%: {blend.formula()}" for p, blend in zip(self.positions, self.blends, strict=True))
        return f"{' -> '.join(frames)} ({self.curve})"

    def __str__(self) -> str:
        return self.formula()


def parse_positions(text: str, count: int) -> tuple[float, ...] | None:
    """Numbers from text such as `0, 0.5, 1` or `0% 50% 100%`, None for empty text.

    Raises BlendError for other words, and for another count.
    """
    numbers = parse_numbers(text, "positions", "blend", "0, 0.5, 1")
    if numbers and len(numbers) != count:
        raise BlendError(f"{len(numbers)} positions came for {count} blends. Give one each, or none for even ones.")
    return numbers or None


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
