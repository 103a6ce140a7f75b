"""Evaluations of a blend over a sampling run: which variants to predict with at each step, and how to weigh them.

A *variant* is a number: 0 the base, i the i-th basis. One family, one signature:

    estimator(coefficients, steps, seeds) -> Plan        coefficients: (1 + m,), or (steps, 1 + m) of a schedule
    plan(evaluate, step) -> the blended prediction

    exact            every variant with a coefficient, every step         DB-MPA, DB-KLA (arXiv 2505.18547, eq. 9-10)
    merged           all bases at their coefficients, in one prediction   what stacked LoRAs are
    random           one variant per step, drawn with probability c_i     DB-MPA-LS (Algorithm 2; Proposition 2)
    stratified       one variant per step, in its share at every prefix   error diffusion; ours
    budget           one per step and what the others last predicted,     control variates (control_variates.py); ours
                     with full steps as an average cost allows

Every image of a batch has its own seed and its own choices, so a batch equals its images made one by one. Only the full
steps of `budget` that come after the first are shared: the whole batch decides when.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from .control_variates import TrackedPlan
from .errors import BlendError
from .plan import Coefficients, MergedPlan, Plan, per_step

Estimator = Callable[[Coefficients, int, Sequence[int]], Plan]
BUDGET = 1.1  # average evaluations per step: the default of `budget`


def exact(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """Every variant whose coefficient is not 0, at every step; no randomness, any sign."""
    coefficients = per_step(coefficients, steps)
    variants = (coefficients != 0).any(0).nonzero().flatten()
    return Plan(variants[None, :, None].expand(steps, -1, len(seeds)), coefficients[:, variants])


def random(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step, drawn independently with probability c_i. Raises BlendError where some c_i < 0."""
    coefficients = per_step(coefficients, steps)
    _check_probabilities(coefficients)
    edges = coefficients.cumsum(1)[:, None, :-1]
    draws = torch.stack([torch.rand(steps, dtype=torch.float64, generator=_generator(seed)) for seed in seeds], dim=1)
    return _one_per_step((draws[..., None] >= edges).sum(-1))


def stratified(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step: the largest deficit, so that every count stays within 1 of its share t * c_i.

    Under a schedule the share is the sum of the c_i so far.

    A start offset drawn from each image's seed decorrelates the images: with two variants it makes this systematic
    sampling, whose every step picks variant i with probability c_i. Raises BlendError where some c_i < 0.
    """
    coefficients = per_step(coefficients, steps)
    _check_probabilities(coefficients)
    return _one_per_step(torch.stack([_diffused(coefficients, _generator(seed)) for seed in seeds], dim=1))


def merged(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> MergedPlan:
    """All bases at their coefficients in one prediction per step, as weights that were merged give it; any sign.

    Not the blend of their predictions but, to second order in what they change, near it.
    """
    coefficients = per_step(coefficients, steps)
    mixtures: dict[int, dict[int, float]] = {}
    variants = [_mixture(row, coefficients.shape[1], mixtures) for row in coefficients.tolist()]
    return MergedPlan(
        torch.tensor(variants)[:, None, None].expand(-1, 1, len(seeds)),
        torch.ones(steps, 1, dtype=torch.float64),
        mixtures,
    )


def _mixture(row: Sequence[float], first: int, mixtures: dict[int, dict[int, float]]) -> int:
    """The variant of these coefficients: the base, a basis, or a mixture, which is entered where it is new."""
    mixture = {variant: coefficient for variant, coefficient in enumerate(row) if variant and coefficient}
    if not mixture or list(mixture.values()) == [1.0]:
        return next(iter(mixture), 0)
    number = next((variant for variant, other in mixtures.items() if other == mixture), first + len(mixtures))
    mixtures[number] = mixture
    return number


def budget(coefficients: Coefficients, steps: int, seeds: Sequence[int], evaluations: float = BUDGET) -> Plan:
    """One variant per step after a first one of all, the others as control variates; see TrackedPlan. Any sign.

    evaluations: the average per step, 1 or more. The first step is always full; at 1 no other one is, above it those
    are where the bases are measured to drift most. Raises BlendError below 1.
    """
    coefficients = per_step(coefficients, steps)
    variants = _blended(coefficients)
    spare = _spare(evaluations, steps)
    shares = coefficients.abs() / coefficients.abs().sum(1, keepdim=True)
    later = torch.stack([_diffused(shares[1:], _generator(seed)) for seed in seeds], dim=1)  # the first is full
    choices = torch.cat([shares[:1].argmax(1).expand(1, len(seeds)), later])
    return TrackedPlan.of(choices, variants, coefficients[:, variants], spare)


EVALUATIONS: dict[str, Estimator] = {
    "exact": exact,
    "merged": merged,
    "budget": budget,
    "stratified": stratified,
    "random": random,
}
FORMER = {"sampled": "random", "control_variate": "budget, with a budget of 1", "anchored": "budget"}
"""Names of evaluations that were there before 0.1.0, and which to take instead."""


def check_evaluation(what: str, name: str, known: Collection[str]) -> None:
    """Raise BlendError where `name` is none of `known`; where it is a former name, with the one to take instead.

    what: the setting that came, for the message.
    """
    if name in known:
        return
    instead = f"Choose {FORMER[name]}" if name in FORMER else "Correct it"
    raise BlendError(f"{what} is {name!r}, expected one of {', '.join(known)}. {instead}.")


def image_seed(seed: int, index: int, part: str = "") -> int:
    """The seed of one image's choices: a hash, so that it shares no random stream with the sampler's own noise.

    part: what tells a run that goes on with an image from the run that began it.
    """
    digest = hashlib.blake2b(f"diffusion blend {seed} {index}{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: what torch.Generator takes


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spare(evaluations: float, steps: int) -> int:
    """Evaluations beyond one per step."""
    if not (math.isfinite(evaluations) and evaluations >= 1):
        raise BlendError(
            f"the budget is {evaluations:g} evaluations per step, expected 1 or more: 1 costs what the base model "
            "costs, the number of reward LoRAs is the exact evaluation. Set it to 1.1 if unsure."
        )
    return math.floor((evaluations - 1) * steps + 1e-9)


def _blended(table: Tensor) -> Tensor:
    """The variants of the steps that blend several, (k,); of all steps where none does. table: (steps, 1 + m)."""
    several = (table != 0).sum(1) > 1
    return (table[several if bool(several.any()) else slice(None)] != 0).any(0).nonzero().flatten()


def _one_per_step(choices: Tensor) -> Plan:
    return Plan(choices[:, None, :], torch.ones(len(choices), 1, dtype=torch.float64))


def _diffused(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Error diffusion of shares (steps, 1 + m), (steps,) long.

    Keeping every count within 1 of its share is a scheduling problem: by time t variant i must have run as often as
    the whole part of its share until then. A choice is feasible while, for every later t, the runs still owed fit into
    the steps that are left. A step of one variant leaves no choice and no debt: it takes that variant.
    """
    several = (shares != 0).sum(1) > 1
    if not bool(several.all()):
        choices = shares.argmax(1)
        choices[several] = _diffused(shares[several], generator)
        return choices
    variants = shares.shape[1]
    offset = torch.empty(variants, dtype=shares.dtype).exponential_(generator=generator)
    offset = (offset / offset.sum()).tolist()  # uniform on the simplex
    until = shares.cumsum(0).tolist()
    owed = [[math.floor(share + 1e-9) for share in row] for row in until]
    counts, choices = [0] * variants, []
    for step, row in enumerate(until):
        deficit = [share - count for share, count in zip(row, counts, strict=True)]
        order = sorted(range(variants), key=lambda i: deficit[i] + offset[i], reverse=True)
        choice = next(i for i in order if deficit[i] > 1e-9 and _feasible(counts, i, owed[step:]))
        counts[choice] += 1
        choices.append(choice)
    return torch.tensor(choices, dtype=torch.long)


def _feasible(counts: Sequence[int], choice: int, owed: Sequence[Sequence[int]]) -> bool:
    """Whether what is owed after a step that takes `choice` fits. owed: until this step, the next one, ..."""
    after = [count + (i == choice) for i, count in enumerate(counts)]
    for steps_left, row in enumerate(owed):
        debts = [whole - count for whole, count in zip(row, after, strict=True)]
        if min(debts) >= 0:  # nothing ran ahead: what is owed in all are no more than the steps until then, as later
            return True
        if sum(debt for debt in debts if debt > 0) > steps_left:
            return False
    return True


def _check_probabilities(coefficients: Tensor) -> None:
    for row in coefficients.unique(dim=0).tolist():
        if min(row) < 0:
            listed = ", ".join(f"{c:.3g}" for c in row)
            raise BlendError(
                f"the coefficients (base first) are {listed}; one variant per step needs none below 0, because they "
                "serve as probabilities. Lower alignment to 1 or less, or choose budget, which takes them, as exact "
                "and merged do. Weights that are taken as they are have to be 0 or more and sum to at most 1."
            )
        if not math.isclose(math.fsum(row), 1, abs_tol=1e-6):
            raise BlendError(f"coefficients sum to {math.fsum(row):g}, expected 1; take them from a Blend.")
