"""Estimators of a blend over a sampling run: which variants to evaluate at each step, and how to weigh them.

A *variant* is a number: 0 the base, i the i-th basis. One family, one signature:

    estimator(coefficients, steps, seeds) -> Plan        coefficients: (1 + m,), or (steps, 1 + m) of a schedule
    plan(evaluate, step) -> the blended prediction

    exact        every variant with a coefficient, every step         DB-MPA, DB-KLA (arXiv 2505.18547, eq. 9-10)
    sampled      one variant per step, drawn with probability c_i     DB-MPA-LS (Algorithm 2; Proposition 2)
    stratified   one variant per step, in its share at every prefix   error diffusion; ours

Every image of a batch has its own seed and its own choices, so a batch equals its images made one by one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .blend import blend
from .errors import BlendError

Evaluate = Callable[[Tensor], Tensor]
"""evaluate(variants): variants (k, batch) long -> their predictions (k, rows, ...), rows a multiple of batch."""


@dataclass(frozen=True)
class Plan:
    """What a run evaluates: `variants` (steps, k, batch) long, and the `weights` (steps, k) of their predictions."""

    variants: Tensor
    weights: Tensor

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

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None) -> Tensor:
        """The blended prediction of `step`, shape (rows, ...), for a call with `images` images (default: all).

        Variants of weight 0 at this step cost nothing.
        """
        variants, weights = self.active(step, images)
        predictions = evaluate(variants)
        # In half precision 1/3 + 1/3 + 1/3 is not 1: weigh in float32 at least, then return to the network's dtype.
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        weights = weights.to(predictions.device, dtype).view(-1, *[1] * (predictions.dim() - 1))
        return blend(weights, predictions).to(predictions.dtype)

    def active(self, step: int, images: int | None = None) -> tuple[Tensor, Tensor]:
        """The variants (k, images) whose weight is not 0 at `step`, and those weights (k,)."""
        used = self.weights[step] != 0
        return self.for_images(step, images or self.batch)[used], self.weights[step, used]


Coefficients = Sequence[float] | Tensor
Estimator = Callable[[Coefficients, int, Sequence[int]], Plan]


def exact(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """Every variant whose coefficient is not 0, at every step; no randomness, any sign."""
    table = _per_step(coefficients, steps)
    variants = (table != 0).any(0).nonzero().flatten()
    return Plan(variants[None, :, None].expand(steps, -1, len(seeds)), table[:, variants])


def sampled(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step, drawn independently with probability c_i. Raises BlendError where some c_i < 0."""
    table = _per_step(coefficients, steps)
    _check_probabilities(table)
    edges = table.cumsum(1)[:, None, :-1]
    draws = torch.stack([torch.rand(steps, dtype=torch.float64, generator=_generator(seed)) for seed in seeds], dim=1)
    return _one_per_step((draws[..., None] >= edges).sum(-1))


def stratified(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step: the largest deficit, so that every count stays within 1 of its share t * c_i.

    Under a schedule the share is the sum of the c_i so far.

    A start offset drawn from each image's seed decorrelates the images: with two variants it makes this systematic
    sampling, whose every step picks variant i with probability c_i. Raises BlendError where some c_i < 0.
    """
    table = _per_step(coefficients, steps)
    _check_probabilities(table)
    return _one_per_step(torch.stack([_diffused(table, _generator(seed)) for seed in seeds], dim=1))


ESTIMATORS: dict[str, Estimator] = {"exact": exact, "stratified": stratified, "sampled": sampled}


def image_seed(seed: int, index: int) -> int:
    """The seed of one image's choices: a hash, so that it shares no random stream with the sampler's own noise."""
    digest = hashlib.blake2b(f"diffusion blend {seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: what torch.Generator takes


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _one_per_step(choices: Tensor) -> Plan:
    return Plan(choices[:, None, :], torch.ones(len(choices), 1, dtype=torch.float64))


def _per_step(coefficients: Coefficients, steps: int) -> Tensor:
    """(steps, 1 + m) float64."""
    table = torch.as_tensor(coefficients, dtype=torch.float64)
    return table if table.dim() == 2 else table.expand(steps, -1)


def _diffused(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Error diffusion of shares (steps, 1 + m), (steps,) long.

    Keeping every count within 1 of its share is a scheduling problem: by time t variant i must have run as often as
    the whole part of its share until then. A choice is feasible while, for every later t, the runs still owed fit into
    the steps that are left.
    """
    steps, variants = shares.shape
    offset = torch.empty(variants, dtype=shares.dtype).exponential_(generator=generator)
    offset = offset / offset.sum()  # uniform on the simplex
    until = shares.cumsum(0)
    owed = (until + 1e-9).floor()
    counts, choices = torch.zeros_like(offset), []
    for step in range(steps):
        deficit = until[step] - counts
        order = torch.argsort(deficit + offset, descending=True, stable=True).tolist()
        eligible = [i for i in order if deficit[i] > 1e-9]
        steps_left = torch.arange(steps - step, dtype=torch.float64)
        choice = next(i for i in eligible if _feasible(counts, i, owed[step:], steps_left))
        counts[choice] += 1
        choices.append(choice)
    return torch.tensor(choices)


def _feasible(counts: Tensor, choice: int, owed: Tensor, steps_left: Tensor) -> bool:
    after = counts.clone()
    after[choice] += 1
    return bool(((owed - after).clamp(min=0).sum(-1) <= steps_left).all())


def _check_probabilities(table: Tensor) -> None:
    for coefficients in table.unique(dim=0).tolist():
        if min(coefficients) < 0:
            listed = ", ".join(f"{c:.3g}" for c in coefficients)
            raise BlendError(
                f"the coefficients (base first) are {listed}; one variant per step needs none below 0, because they "
                "serve as probabilities. Lower alignment to 1 or less, or choose the exact evaluation."
            )
        if not math.isclose(math.fsum(coefficients), 1, abs_tol=1e-6):
            raise BlendError(f"coefficients sum to {math.fsum(coefficients):g}, expected 1; take them from a Blend.")


def describe_choices(plan: Plan, names: Sequence[str]) -> str:
    """Which variant each step of each image used, one line per image, for plans of one variant per step."""
    labels = ("base", *names)
    lines = []
    for image in range(plan.batch):
        steps = plan.variants[:, 0, image].tolist()
        lines.append(f"image {image + 1}: " + ", ".join(f"{i}: {labels[v]}" for i, v in enumerate(steps, start=1)))
    return "\n".join(lines)
