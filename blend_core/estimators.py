"""Estimators of a blend over a sampling run: which variants to evaluate at each step, and how to weigh them.

A *variant* is a number: 0 the base, i the i-th basis. One family, one signature:

    estimator(coefficients, steps, seeds) -> Plan        coefficients: (1 + m,), or (steps, 1 + m) of a schedule
    plan(evaluate, step) -> the blended prediction

    exact            every variant with a coefficient, every step         DB-MPA, DB-KLA (arXiv 2505.18547, eq. 9-10)
    merged           all bases at their coefficients, in one prediction   what stacked LoRAs are
    sampled          one variant per step, drawn with probability c_i     DB-MPA-LS (Algorithm 2; Proposition 2)
    stratified       one variant per step, in its share at every prefix   error diffusion; ours
    control_variate  one per step, and what the others last predicted     control_variates.py; ours
    budget           the same, with full steps as an average cost allows
    anchored         the soup at every step, its error corrected          control_variates.py; ours

Every image of a batch has its own seed and its own choices, so a batch equals its images made one by one. Only the full
steps of `budget` that come after the first are shared: the whole batch decides when.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .control_variates import AnchoredPlan, TrackedPlan
from .errors import BlendError
from .plan import Coefficients, MergedPlan, Plan, per_step

Estimator = Callable[[Coefficients, int, Sequence[int]], Plan]
BUDGET = 1.1  # average evaluations per step: what `budget` and `anchored` take unless told


def exact(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """Every variant whose coefficient is not 0, at every step; no randomness, any sign."""
    table = per_step(coefficients, steps)
    variants = (table != 0).any(0).nonzero().flatten()
    return Plan(variants[None, :, None].expand(steps, -1, len(seeds)), table[:, variants])


def sampled(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step, drawn independently with probability c_i. Raises BlendError where some c_i < 0."""
    table = per_step(coefficients, steps)
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
    table = per_step(coefficients, steps)
    _check_probabilities(table)
    return _one_per_step(torch.stack([_diffused(table, _generator(seed)) for seed in seeds], dim=1))


def merged(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> MergedPlan:
    """All bases at their coefficients in one prediction per step, as weights that were merged give it; any sign.

    Not the blend of their predictions but, to second order in what they change, near it.
    """
    table = per_step(coefficients, steps)
    mixtures: dict[int, dict[int, float]] = {}
    variants = [_mixture(row, table.shape[1], mixtures) for row in table.tolist()]
    return MergedPlan(
        torch.tensor(variants)[:, None, None].expand(-1, 1, len(seeds)),
        torch.ones(steps, 1, dtype=torch.float64),
        mixtures,
    )


def _mixture(row: Sequence[float], first: int, mixtures: dict[int, dict[int, float]]) -> int:
    """The variant of these coefficients: the base, a basis, or a mixture, which is entered where it is new."""
    own = {variant: coefficient for variant, coefficient in enumerate(row) if variant and coefficient}
    if not own or list(own.values()) == [1.0]:
        return next(iter(own), 0)
    known = next((variant for variant, other in mixtures.items() if other == own), first + len(mixtures))
    mixtures[known] = own
    return known


def control_variate(coefficients: Coefficients, steps: int, seeds: Sequence[int]) -> Plan:
    """One variant per step after a first one of all; see TrackedPlan. Any sign: DB-KLA at the cost of one model."""
    return budget(coefficients, steps, seeds, 1.0)


def budget(coefficients: Coefficients, steps: int, seeds: Sequence[int], evaluations: float = BUDGET) -> Plan:
    """control_variate, with full evaluations where the bases are measured to drift most.

    evaluations: the average per step, 1 or more; the first step is always full, whatever it says. Raises BlendError
    below 1.
    """
    table = per_step(coefficients, steps)
    variants = _blended(table)
    spare = _spare(evaluations, steps)
    shares = table.abs() / table.abs().sum(1, keepdim=True)
    later = torch.stack([_diffused(shares[1:], _generator(seed)) for seed in seeds], dim=1)  # the first is full
    choices = torch.cat([shares[:1].argmax(1).expand(1, len(seeds)), later])
    return TrackedPlan.of(choices, variants, table[:, variants], spare)


def anchored(coefficients: Coefficients, steps: int, seeds: Sequence[int], evaluations: float = BUDGET) -> Plan:
    """The soup, variant 1 + m of a bank that holds it too, corrected by DB-MPA - soup; see AnchoredPlan.

    Any sign. Raises BlendError for an `evaluations` below 1, and for coefficients that change over the run, because
    the soup's weights do not; steps of the base alone are not of it.
    """
    table = per_step(coefficients, steps)
    acting = (table[:, 1:] != 0).any(1)
    if bool((table[acting] != table[acting][:1]).any()):
        raise BlendError("anchored evaluation needs one soup for the whole run. Choose budget for a schedule.")
    variants = _blended(table)
    asked = torch.where(acting, table.shape[1], 0)
    return AnchoredPlan.of(asked, variants, table[:, variants], _spare(evaluations, steps), len(seeds))


ESTIMATORS: dict[str, Estimator] = {
    "exact": exact,
    "merged": merged,
    "budget": budget,
    "control_variate": control_variate,
    "stratified": stratified,
    "sampled": sampled,
    "anchored": anchored,
}
BUDGETED = ("budget", "anchored")  # those that take `evaluations`


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
    return torch.tensor(choices, dtype=torch.long)


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
                "serve as probabilities. Lower alignment to 1 or less, or choose budget, which takes them, as exact "
                "and merged do. Weights that are taken as they are have to be 0 or more and sum to at most 1."
            )
        if not math.isclose(math.fsum(coefficients), 1, abs_tol=1e-6):
            raise BlendError(f"coefficients sum to {math.fsum(coefficients):g}, expected 1; take them from a Blend.")
