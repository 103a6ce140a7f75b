"""The plan of a sampling run: which variants each step evaluates, and how it weighs them.

A *variant* is a number: 0 the base, i the i-th basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .blend import blend
from .errors import BlendError
from .parameterization import State

_ROUNDING = 1e-6  # steps: the product of a share and a number of steps, such as 0.7 * 10, misses a whole one by less

Evaluate = Callable[[Tensor], Tensor]
"""evaluate(variants): variants (k, batch) long -> their predictions (k, rows, ...), rows a multiple of batch."""


@dataclass(frozen=True)
class Call:
    """One call of the network.

    name: what it is asked for, the same at every step (conditional, unconditional; a sampler's second evaluation of a
    step).  state: what it sees; without it a run counts as one without fresh noise.
    """

    name: Hashable = None
    state: State | None = None


UNNAMED = Call()  # where a step calls the network once


@dataclass(frozen=True)
class Job:
    """Which steps of a whole job a run makes, where several runs share it (Wan 2.2's two networks, a refiner).

    steps: of the whole job; 0: every run is a job of its own.  start: the step of the job that the run begins with,
    from 0. Raises BlendError for a start that is no step of the job.
    """

    steps: int = 0
    start: int = 0

    def __post_init__(self):
        if self.start and not 0 < self.start < self.steps:
            raise BlendError(
                f"start_at_step is {self.start} and job_steps {self.steps}, expected a step before the last of the "
                "job. Set job_steps to the steps of all samplers together, as in KSampler (Advanced); where one "
                "sampler makes all steps, set both to 0."
            )

    def whole(self, steps: int) -> int:
        """The steps of the job that a run of `steps` belongs to. Raises BlendError where they are too many for it."""
        if self.steps and self.start + steps > self.steps:
            raise BlendError(
                f"the sampler makes {steps} steps from step {self.start} of a job of {self.steps} on, expected at most "
                f"{self.steps - self.start}. Set job_steps of Apply Blend to the steps of all samplers together (at "
                f"least {self.start + steps} here), the same for each of them, and start_at_step to this sampler's own."
            )
        return self.steps or steps

    def part(self, steps: int) -> slice:
        """Which steps of the job a run of `steps` makes."""
        return slice(self.start, self.start + steps)

    def __str__(self) -> str:
        return f"schedules and choices count the steps of a job of {self.steps}, from step {self.start} on"


Part = TypeVar("Part", bound="Plan")  # the same kind of plan


@dataclass(frozen=True)
class Plan:
    """What a run evaluates: `variants` (steps, k, batch) long, and the `weights` (steps, k) of their predictions."""

    variants: Tensor
    weights: Tensor

    mixtures: ClassVar[Mapping[int, Mapping[int, float]]] = {}  # variants that are several at once, with coefficients
    needs_denoised: ClassVar[bool] = False  # whether predictions must come as denoised, the model's estimates of x0

    @property
    def evaluations_per_step(self) -> float:
        """The average number of variants that a step evaluates."""
        return float((self.weights != 0).sum(1).double().mean())

    def part(self: Part, start: int, steps: int) -> Part:
        """The plan of `steps` steps from `start` on, as a run of its own."""
        if (start, steps) == (0, len(self.variants)):
            return self
        return replace(self, variants=self.variants[start : start + steps], weights=self.weights[start : start + steps])

    @property
    def batch(self) -> int:
        """Images the plan was made for."""
        return self.variants.shape[2]

    def for_images(self, step: int, images: int) -> Tensor:
        """The variants of `step` for `images` images, (k, images).

        Where all images share their variants, a part of the batch will do (context windows split it); choices of
        single images cannot be told apart there. Raises BlendError then.
        """
        variants = self.variants[step]
        if images == self.batch:
            return variants
        if not bool((variants == variants[:, :1]).all()):
            raise BlendError(
                f"a step evaluates {images} images at once where the batch has {self.batch}, so it is unknown which "
                "choice belongs to which. Sample one image at a time, or choose the exact evaluation."
            )
        return variants[:, :1].expand(-1, images)

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Call = UNNAMED) -> Tensor:
        """The blended prediction of `step`, shape (rows, ...), for a call with `images` images (default: all).

        call: which one it is, for plans that remember. Variants of weight 0 at this step cost nothing.
        """
        variants, weights = self.active(step, images)
        predictions = evaluate(variants)
        return predictions[0] if weights.tolist() == [1.0] else weighed(weights, predictions)

    @property
    def most_per_step(self) -> int:
        """The most variants that one step asks."""
        return int((self.weights != 0).sum(1).max())

    def release(self) -> None:
        """Let go of predictions that a run left behind; what it spent can still be asked."""

    def is_full(self, step: int) -> bool:
        """Whether a step that would ask one variant asked all of them."""
        return False

    def active(self, step: int, images: int | None = None) -> tuple[Tensor, Tensor]:
        """The variants (k, images) whose weight is not 0 at `step`, and those weights (k,)."""
        variants, weights = self.for_images(step, images or self.batch), self.weights[step]
        used = [place for place, weight in enumerate(weights.tolist()) if weight]
        return (variants, weights) if len(used) == len(weights) else (variants[used], weights[used])


@dataclass(frozen=True)
class MergedPlan(Plan):
    """One variant per step, which may be a mixture: all bases at their coefficients in one prediction."""

    mixtures: Mapping[int, Mapping[int, float]] = field(default_factory=dict)


Coefficients = Sequence[float] | Tensor
"""(1 + m,), base first, or (steps, 1 + m) of a schedule."""
Kept = TypeVar("Kept", bound=Sequence[float] | Tensor)


def weighed(weights: Tensor, predictions: Tensor) -> Tensor:
    """sum_i weights[i] * predictions[i], (rows, ...); weights: (k,), predictions: (k, rows, ...).

    In half precision 1/3 + 1/3 + 1/3 is not 1: weighed in float32 at least, returned in the network's dtype.
    """
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    weights = weights.to(predictions.device, dtype).view(-1, *[1] * (predictions.dim() - 1))
    return blend(weights, predictions).to(predictions.dtype)


def per_step(coefficients: Coefficients, steps: int) -> Tensor:
    """(steps, 1 + m) float64."""
    table = torch.as_tensor(coefficients, dtype=torch.float64)
    return table if table.dim() == 2 else table.expand(steps, -1)


def kept_steps(until: float, steps: int) -> int:
    """How many of `steps` begin before the share `until` of the run: of 20 steps and 0.9 the first 18.

    Raises BlendError for a share outside of 0 to 1.
    """
    check_until(until)
    return math.ceil(until * steps - _ROUNDING)


def check_until(until: float) -> None:
    """Raise BlendError for what is no share of a run."""
    if not 0 <= until <= 1:
        raise BlendError(
            f"until is {until}, expected a share of the run from 0 (the base model throughout) to 1 (the blend to the "
            "end). Set it to 1 if unsure; 0.9 leaves the last tenth of the steps to the base model."
        )


def cut(coefficients: Kept, steps: int, until: float) -> Kept | Tensor:
    """The coefficients of a run that the base model ends: (steps, 1 + m), the base alone from `until` of it on.

    Where `until` is 1 they come back as they are. Raises BlendError for a share outside of 0 to 1.
    """
    kept = kept_steps(until, steps)
    if until == 1:
        return coefficients
    table = per_step(coefficients, steps).clone()
    table[kept:] = 0
    table[kept:, 0] = 1
    return table


def choices(plan: Plan, names: Sequence[str]) -> list[list[int | None]]:
    """The variant that each step of each image used, 1 + len(names) for a mixture, None at steps of all; for plans of
    one variant per step."""
    variants = plan.variants[:, 0].clamp(max=1 + len(names)).T.tolist()  # (batch, steps)
    return [[None if plan.is_full(step) else used for step, used in enumerate(steps)] for steps in variants]


def describe_choices(plan: Plan, names: Sequence[str]) -> str:
    """Which variant each step of each image used, one line per image, for plans of one variant per step."""
    labels = {None: "all", **dict(enumerate(("base", *names, "merged")))}
    return "\n".join(
        f"image {image}: " + ", ".join(f"{step}: {labels[used]}" for step, used in enumerate(steps, start=1))
        for image, steps in enumerate(choices(plan, names), start=1)
    )
