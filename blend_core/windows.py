"""A blend in some steps of a run, another one outside of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blend import Blend
from .errors import BlendError
from .schedules import Schedule


@dataclass(frozen=True)
class Window:
    """`inside` from step `start` on and before step `end`, counted from 0; `outside` in all others.

    Steps are those of the run, or of the whole job that it is a part of.

    Both are of the same bases. fade: steps over which the change is spread, within the window: with 2, the steps at an
    edge have 1/3 and 2/3 of `inside`. An edge at the run's own beginning or end has no fade. Raises BlendError for a
    window without a step, for a fade below 0, and for blends of different bases.
    """

    inside: Schedule | Window
    outside: Schedule | Window
    start: int
    end: int
    fade: int = 0

    def __post_init__(self):
        if not 0 <= self.start < self.end:
            raise BlendError(
                f"the window goes from step {self.start} to before step {self.end}, expected a start of 0 or more and "
                "an end above it. Set end_at_step above start_at_step; 0 and 2 are the first two steps."
            )
        if self.inside.blends[0].names != self.outside.blends[0].names:
            raise BlendError("the blends of a window are of different bases. Express both over the same bases.")
        if self.fade < 0:
            raise BlendError(f"fade is {self.fade}, expected 0 or more steps. Set it to 0 for none.")

    @property
    def blends(self) -> tuple[Blend, ...]:
        """All blends, those of the inside first."""
        return self.inside.blends + self.outside.blends

    @property
    def is_constant(self) -> bool:
        """Whether every step has the same coefficients: a window is there to change them."""
        return False

    def coefficients(self, steps: int) -> Tensor:
        """(steps, 1 + m) float64, base first; every row sums to 1."""
        share = self._share(steps)[:, None]
        inside, outside = self.inside.coefficients(steps), self.outside.coefficients(steps)
        # Where the share is 1 or 0 the sum would be off by rounding, and evaluate what has no part.
        mixed = share * inside + (1 - share) * outside
        return torch.where(share == 1, inside, torch.where(share == 0, outside, mixed))

    def _share(self, steps: int) -> Tensor:
        """(steps,) float64: how much of `inside` each step has."""
        step = torch.arange(steps, dtype=torch.float64)
        rising = (step - self.start + 1) / (self.fade + 1) if self.start else torch.ones_like(step)
        falling = (self.end - step) / (self.fade + 1) if self.end < steps else torch.ones_like(step)
        return torch.minimum(rising, falling).clamp(0, 1)

    def mapped(self, change: Callable[[Blend], Blend]) -> Window:
        """The same window with every blend changed."""
        return replace(self, inside=self.inside.mapped(change), outside=self.outside.mapped(change))

    def aligned(self, alignment: float) -> Window:
        """The same window at `alignment` times the present distance from the base (DB-KLA of every blend)."""
        return self.mapped(lambda blend: blend.aligned(alignment))

    def cut(self, until: float) -> Window:
        """The same window up to the share `until` of the run."""
        return replace(self, inside=self.inside.cut(until), outside=self.outside.cut(until))

    def formula(self, steps: int = 0) -> str:
        """The window as a person reads it, such as `steps 0 to 1: 1 calm; else: 1 base`.

        steps: of the run; 0 where they are not known.
        """
        fade = f", fade {self.fade}" if self.fade else ""
        never = f", which a run of {steps} steps does not reach" if 0 < steps <= self.start else ""
        inside, outside = self.inside.formula(steps), self.outside.formula(steps)
        return f"steps {self.start} to {self.end - 1}{fade}{never}: {inside}; else: {outside}"

    def describe(self) -> str:
        """The formula."""
        return self.formula()

    def __str__(self) -> str:
        return self.formula()

