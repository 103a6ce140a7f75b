"""Estimators that remember: one evaluation per step, and what the other variants predicted when they were last asked.

Both speak of denoised predictions. From step to step these drift far less than the bases differ, where eps and v change
with the noise level itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .plan import Evaluate, Plan, weighed

TRUST = 0.5  # drift per step over the distance of the variants, below which a table beats a choice in its share


@dataclass
class Memory:
    """What a run has seen. evaluated: variants asked for, by step.  tables: what was last seen, by call.

    last: (k, batch), the step of each variant's evaluation before this one.  drifts: of every call after the first
    step, how far predictions moved per step.
    """

    step: int = -1
    full: bool = False
    evaluated: dict[int, int] = field(default_factory=dict)
    tables: dict[Hashable, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    drifts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RememberingPlan(Plan):
    """variants: what a step asks that is not full.  bases: (k,), all variants.  coefficients: (steps, k), theirs.

    spare: evaluations that may be made beyond one per step. A run that begins again at an earlier step forgets.
    """

    bases: Tensor
    coefficients: Tensor
    spare: int
    memory: Memory = field(default_factory=Memory, compare=False)

    needs_denoised: ClassVar[bool] = True

    @property
    def evaluations_per_step(self) -> float:
        """The average of the run so far; before it, what it may come to."""
        if self.memory.evaluated:
            return sum(self.memory.evaluated.values()) / len(self.memory.evaluated)
        return 1 + max(self.spare, self.cost_of_full) / len(self.variants)

    @property
    def cost_of_full(self) -> int:
        """Evaluations that a full step makes beyond one."""
        return len(self.bases) - 1

    @property
    def left(self) -> int:
        """Spare evaluations that were not spent yet."""
        return self.spare - sum(count - 1 for count in self.memory.evaluated.values())

    def everything(self, images: int) -> Tensor:
        """All variants for every image, (k, images)."""
        return self.bases[:, None].expand(-1, images)


@dataclass(frozen=True)
class TrackedPlan(RememberingPlan):
    """Control variates. T_j: what variant j predicted last, g_j steps ago; i: the variant of this step, D_i its word.

        estimate = sum_j c_j T_j + c_i (g_i - 1) / 2 * (D_i - T_i before),    after T_i <- D_i

    The second term pays back: while i was not asked, T_i fell behind in a line from 0 to the whole difference, which is
    (g_i - 1) / 2 of it in all. As in SAGA (arXiv 1407.0202) a table that is exact makes the estimate exact, and no
    error adds up. Any sign of the coefficients. A full step asks all variants: the first, and while `spare` lasts
    those that follow a drift above the run's average.

    Where predictions drift by as much as the bases differ (early, under fresh noise) the table says nothing: an image
    whose drift is above TRUST takes D_i alone, which is the stratified choice.
    """

    @classmethod
    def of(cls, choices: Tensor, bases: Tensor, coefficients: Tensor, spare: int) -> TrackedPlan:
        """choices: (steps, batch), one variant per step and image."""
        ones = torch.ones(len(choices), 1, dtype=torch.float64)
        return cls(choices[:, None, :], ones, bases, coefficients, spare)

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Hashable = None) -> Tensor:
        """The estimate of `step`, (rows, ...). A call that has no table yet is evaluated in full."""
        images = images or self.batch
        choices = self.for_images(step, images)
        self._begin(step)
        table = self.memory.tables.get(call)
        if table is None:
            self.memory.tables[call] = predictions = evaluate(self.everything(images))
            return weighed(self.coefficients[step], predictions)
        return self._update(call, table, self.everything(images) if self.memory.full else choices, evaluate)

    def _begin(self, step: int) -> None:
        """Note that `step` is evaluated, and settle once for all of its calls whether it is full."""
        memory = self.memory
        if step == memory.step:
            return
        if step < memory.step:
            memory.__init__()
        if memory.last is None:
            memory.last = torch.full((len(self.bases), self.batch), step)
            memory.full = True
        else:
            asked = self.everything(self.batch) if memory.full else self.variants[memory.step]
            memory.last.scatter_(0, torch.searchsorted(self.bases, asked), memory.step)
            memory.full = self.left >= self.cost_of_full > 0 and self._drifting()
        memory.step = step
        memory.evaluated[step] = len(self.bases) if memory.full else 1

    def _drifting(self) -> bool:
        drifts = self.memory.drifts
        return bool(drifts) and drifts[-1] >= sum(drifts) / len(drifts)

    def _update(self, call: Hashable, table: Tensor, asked: Tensor, evaluate: Evaluate) -> Tensor:
        predictions = evaluate(asked)
        coefficients = self.coefficients[self.memory.step].to(predictions.device, predictions.dtype)
        places, ages = self._rows(asked, predictions)
        place = (places, torch.arange(predictions.shape[1], device=predictions.device).expand_as(places))
        change = predictions - table[place]
        table = table.index_put(place, predictions)
        self.memory.tables[call] = table
        estimate = weighed(coefficients, table)
        drift = _rms(change / _wide(ages, change), axes=2).amax(0)
        self.memory.drifts.append(drift.mean().item())
        owed = (_wide(coefficients[places] * (ages - 1) / 2, change) * change).sum(0)
        if self.memory.full or bool((coefficients < 0).any()):
            return estimate + owed
        shares = _wide(coefficients[:, None].expand(-1, table.shape[1]), table)
        distance = 2 * _rms((shares * (table - estimate).square()).sum(0).sqrt(), axes=1)
        trusted = _wide(drift < TRUST * distance, estimate)
        return torch.where(trusted, estimate + owed, predictions[0])

    def _rows(self, asked: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """Per row of a call the places (n, rows) of the variants it asked, and the steps since each was asked before.

        Rows hold groups of the same images: conditional, unconditional...
        """
        places = torch.searchsorted(self.bases, asked)
        ages = self.memory.step - self.memory.last[:, : asked.shape[1]].gather(0, places)
        groups = predictions.shape[1] // asked.shape[1]
        device = predictions.device
        return places.repeat(1, groups).to(device), ages.repeat(1, groups).to(device, predictions.dtype)


@dataclass(frozen=True)
class AnchoredPlan(RememberingPlan):
    """The soup, all adapters at once in one pass, plus what it lacked when it was last compared: DB-MPA - soup.

    The difference is of second order in the adapters. Full steps ask all variants and the soup, evenly spread over the
    run while `spare` lasts, the first always.
    """

    @classmethod
    def of(cls, soup: int, bases: Tensor, coefficients: Tensor, spare: int, images: int) -> AnchoredPlan:
        """soup: the soup's variant number in the bank."""
        steps = len(coefficients)
        variants = torch.full((steps, 1, images), soup)
        return cls(variants, torch.ones(steps, 1, dtype=torch.float64), bases, coefficients, spare)

    @property
    def cost_of_full(self) -> int:
        """The bases come beside the soup."""
        return len(self.bases)

    @property
    def full_steps(self) -> set[int]:
        """Steps that compare the soup with DB-MPA."""
        count = max(self.spare // self.cost_of_full, 1)
        return {round(i * len(self.variants) / count) for i in range(count)}

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Hashable = None) -> Tensor:
        """The estimate of `step`, (rows, ...)."""
        images, memory = images or self.batch, self.memory
        full = step in self.full_steps or call not in memory.tables
        if step < memory.step:
            memory.evaluated.clear()
        memory.step = step
        memory.evaluated[step] = 1 + (self.cost_of_full if full else 0)
        soup = self.for_images(step, images)
        if not full:
            return evaluate(soup)[0] + memory.tables[call]
        predictions = evaluate(torch.cat([soup, self.everything(images)]))
        blended = weighed(self.coefficients[step], predictions[1:])
        memory.tables[call] = blended - predictions[0]
        return blended


def _rms(values: Tensor, axes: int) -> Tensor:
    """Root mean square over all but the leading axes, which are kept."""
    return values.flatten(axes).square().mean(-1).sqrt()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """`values` with trailing axes of size 1, to be multiplied with `like`."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))
