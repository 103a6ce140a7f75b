"""When to trust a blend: how far its bases disagree, and how large the Jensen gap is that it neglects.

    disagreement    Delta_i = D_i - D_0, the pull of basis i away from the base, relative to |x - D_0|
    Jensen gap      G(x_t) = log E[exp(r / alpha) | x_t] - E[r / alpha | x_t],  x0 ~ p_base(. | x_t)

A blend takes the control grad_x log E[exp(r / alpha) | x_t] to be linear in r / alpha (arXiv 2505.18547, Lemma 1):
that is so where the gap is small, or the same at every x_t, as for a linear reward on Gaussian data. Both noise
families move along (x - D) / sigma, so |Delta_i| / |x - D_0| is the share by which basis i bends the base's direction:
0 no change, 1 a change as large as the direction itself. It compares bases, steps and models of any size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import torch
from torch import Tensor

from .errors import BlendError
from .gaussian import reverse_step

# The spread of the weights exp(r / alpha), relative to their mean, is the factor in Lemma 1's bound. At 1 half of the
# posterior's samples count, n / (1 + variation^2): beyond it a minority decides log E exp, and the mean says little.
MOST_VARIATION = 1.0
# Below this many samples that count, one of them decides: G is then a lower bound, and its error is not known.
FEWEST_COUNTING = 4.0
# The approximation drops what is of second order in the pull. A pull of half the base's direction turns it by up to 30
# degrees (the arcsine of a half), and its square is no longer small against it.
MOST_BEND = 0.5
# A blend inside the hull of its bases goes where some training has been. The longest pull of a basis is the last length
# that was trained; 5% are left for rounding and for blends that touch it.
MOST_REACH = 1.05
_TINY = 1e-30  # in place of a length of 0
SAME = 0.05  # of the blend's way from the base: below it merged and exact give the same image to the eye
OPPOSED = -0.5  # a cosine below it: more than half of the shorter pull is undone by the other

Predict = Callable[[Tensor, int], Tensor]
"""denoised(x, step): the guided prediction of x0 at x (batch, ...) before `step` of the run, shaped as x."""


@dataclass(frozen=True)
class Disagreement:
    """The bases at one step, means over the images. m: number of bases.

    step: from 0.  sigma: noise level.  coefficients: (1 + m), base first.  bends: (m,) |D_i - D_0| / |x - D_0|.
    cosines: one per pair of bases, in the order of itertools.combinations; 0 where a basis is the base.
    bend: of the blend, |sum_i c_i Delta_i| / |x - D_0|.  reach: the same over the longest |Delta_i|.
    merged: |M - D| / |D - D_0| of the blend D and the prediction M of all LoRAs added up; None where none was made.
    """

    step: int
    sigma: float
    coefficients: tuple[float, ...]
    bends: tuple[float, ...]
    cosines: tuple[float, ...]
    bend: float
    reach: float
    merged: float | None = None


@dataclass(frozen=True)
class Gap:
    """The Jensen gap before one step, means over the states x_t. samples: posterior samples of each state.

    kl_weight: the alpha it is taken at.  gap, standard_error: G in nats.  variation: standard deviation of
    exp(r / alpha) over its mean.  least_kl_weight: the alpha at which that is MOST_VARIATION; it is less above.
    """

    step: int
    sigma: float
    name: str
    kl_weight: float
    samples: int
    gap: float
    standard_error: float
    variation: float
    least_kl_weight: float

    @property
    def excess(self) -> float:
        """How many times too strong the tilt is, least_kl_weight / kl_weight; 1 and below is fine."""
        return self.least_kl_weight / self.kl_weight

    @property
    def counting(self) -> float:
        """How many of the samples count, n / (1 + variation^2)."""
        return self.samples / (1 + self.variation**2)


@dataclass(frozen=True)
class Verdict:
    """level: exact, fair (nothing speaks against the blend) or doubtful.  reasons: one sentence each."""

    level: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"Verdict: {self.level}", *(f"- {reason}" for reason in self.reasons)])


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured of a run. names: of the bases.  evaluations: of the guided model, per image.

    blend_evaluations: what the same run costs without diagnosis.
    """

    names: tuple[str, ...]
    formula: str
    steps: tuple[Disagreement, ...]
    gaps: tuple[Gap, ...]
    evaluations: int
    blend_evaluations: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that `cosines` are of."""
        return list(combinations(self.names, 2))

    @property
    def verdict(self) -> Verdict:
        """In words, whether to trust the blend."""
        alone = sole_variant([step.coefficients for step in self.steps])
        if alone is not None:
            what = "the base model" if alone == 0 else f"{self.names[alone - 1]} alone"
            return Verdict("exact", (f"Every step is {what}: nothing is approximated.",))
        steps = [step for step in self.steps if any(step.coefficients[1:])]  # the base alone approximates nothing
        doubts = [*_doubts_of_gaps(self.gaps), *_doubts_of_steps(steps, self.names)]
        if doubts:
            return Verdict("doubtful", tuple(doubts))
        return Verdict("fair", tuple(_comforts(steps, self.gaps)))

    @property
    def way(self) -> str:
        """In words, whether merged evaluation would do; an empty text where it was not measured."""
        measured = [(s.merged, s.step) for s in self.steps if s.merged is not None and any(s.coefficients[1:])]
        if not measured:
            return ""
        most, at = max(measured, key=lambda pair: pair[0])
        if most <= SAME:
            return (
                f"Merged or exact: they differ by at most {most:.1%} of the blend's way from the base. Both are "
                "equal here: take merged, it costs one evaluation per step."
            )
        return (
            f"Merged or exact: they differ by up to {most:.0%} of the blend's way from the base (at step "
            f"{at + 1}), so their images are not the same. Which one scores higher does not follow from that: "
            "compare them on some prompts (diffusion-blend evaluate, methods merged and mpa)."
        )

    def rows(self) -> list[list[str]]:
        """A heading, then one row per step: its number from 1, sigma, bends, the blend's, cosines, merged's gap."""
        pairs = [f"cos {a}, {b}" for a, b in self.pairs]
        is_measured = any(step.merged is not None for step in self.steps)
        heading = ["step", "sigma", *self.names, "blend", *pairs, *["merged - exact"] * is_measured]
        return [heading, *(_row(step) for step in self.steps)]

    def gap_rows(self) -> list[list[str]]:
        """A heading, then one row per probed step and reward."""
        heading = ["step", "sigma", "reward", "KL weight", "G (nats)", "standard error", "variation", "too strong by"]
        return [heading, *(_gap_row(gap) for gap in self.gaps)]

    def describe(self) -> str:
        """Everything as plain text."""
        parts = [self.formula, str(self.verdict), *[self.way] * bool(self.way), _aligned(self.rows())]
        parts += [f"Jensen gap\n{_aligned(self.gap_rows())}"] if self.gaps else []
        spent = f"{self.evaluations} evaluations per image ({self.blend_evaluations} without diagnosis)"
        return "\n\n".join([*parts, spent])

    def to_json(self) -> str:
        """A JSON object of the fields and the verdict."""
        said = {"pairs": self.pairs, "verdict": asdict(self.verdict), "way": self.way}
        return json.dumps({**asdict(self), **said}, indent=1)


def disagreement(
    x: Tensor,
    denoised: Tensor,
    coefficients: Sequence[float],
    step: int,
    sigma: float,
    merged: Tensor | None = None,
) -> Disagreement:
    """How far the bases are from the base and from each other at x (batch, ...).

    denoised: (1 + m, batch, ...), base first.  coefficients: (1 + m).  merged: (batch, ...), of all LoRAs added up.
    """
    pulls = (denoised[1:] - denoised[0]).flatten(2)
    direction = (x - denoised[0]).flatten(1).norm(dim=1).clamp(min=_TINY)
    lengths = pulls.norm(dim=2)
    weights = torch.as_tensor(coefficients[1:]).to(pulls).view(-1, 1, 1)
    blend = (weights * pulls).sum(0)
    blended = blend.norm(dim=1)
    lacking = None if merged is None else ((merged - denoised[0]).flatten(1) - blend).norm(dim=1)
    units = pulls / lengths.clamp(min=_TINY)[..., None]
    cosines = [(units[i] * units[j]).sum(1).mean().item() for i, j in combinations(range(len(pulls)), 2)]
    return Disagreement(
        step,
        float(sigma),
        tuple(float(c) for c in coefficients),
        tuple((lengths / direction).mean(1).tolist()),
        tuple(cosines),
        (blended / direction).mean().item(),
        (blended / lengths.amax(0).clamp(min=_TINY)).mean().item(),
        None if lacking is None else (lacking / blended.clamp(min=_TINY)).mean().item(),
    )


def posterior_samples(
    denoised: Predict, x: Tensor, sigmas: Sequence[float], step: int, family: str, noise: Callable[[], Tensor]
) -> Tensor:
    """x0 ~ p(. | x), one per row of x (batch, ...): the ancestral run (eta 1) from sigmas[step] down to 0.

    sigmas: (steps + 1,), falling to 0.  noise(): standard normal, shaped as x. A first-order run draws too narrowly, by
    a share of the variance that falls as 1 over the steps left.
    """
    for k in range(step, len(sigmas) - 1):
        x, spread = reverse_step(x, denoised(x, k), sigmas[k], sigmas[k + 1], 1.0, family)
        if spread > 0:
            x = x + spread * noise()
    return x


def jensen_gap(scores: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """(G, its standard error, the variation) of scores (n, ...), each (...): n posterior samples of every state.

    G = log mean exp(r / alpha) - mean r / alpha. The error is the jackknife's, sqrt((n - 1) / n sum_j (G_j - mean G)^2)
    with G_j from all samples but j. Raises BlendError for fewer than 3 samples, and for a KL weight not above 0.
    """
    n = len(scores)
    if n < 3:
        raise BlendError(f"{n} posterior samples came, expected 3 or more: the error comes from leaving one out.")
    if not (math.isfinite(kl_weight) and kl_weight > 0):
        raise BlendError(f"the KL weight is {kl_weight}, expected a number above 0: the one the LoRA was trained with.")
    tilt = scores.cpu().double() / kl_weight
    gap = tilt.logsumexp(0) - math.log(n) - tilt.mean(0)
    without = ~torch.eye(n, dtype=torch.bool, device=tilt.device)
    others = torch.stack([_gap_of(tilt[kept]) for kept in without])
    error = ((n - 1) / n * (others - others.mean(0)).square().sum(0)).sqrt()
    return gap, error, _variation(tilt)


def gap_at(step: int, sigma: float, name: str, scores: Tensor, kl_weight: float, coefficients: Sequence[float]) -> Gap:
    """The gap before `step` of the basis `name`, from scores (n, states) of its reward.

    It is taken at kl_weight, or at what the blend asks for where that is stronger: kl_weight over the sum of the
    bases' coefficients, the alignment.
    """
    asked = kl_weight / max(1.0, 1.0 - coefficients[0])
    gap, error, variation = (each.flatten() for each in jensen_gap(scores, asked))
    error = error.square().sum().sqrt() / len(error)
    least = _least_kl_weight(scores.cpu().double())
    return Gap(
        step, float(sigma), name, asked, len(scores), gap.mean().item(), error.item(), variation.mean().item(), least
    )


def probed_steps(steps: int, count: int) -> list[int]:
    """`count` steps at equal distances from the first on; the last step's posterior is its prediction alone."""
    return sorted({steps * i // count for i in range(count)})


def sole_variant(coefficients: Iterable[Sequence[float]]) -> int | None:
    """The variant (0 the base) that every step consists of, None where there is no such: then the blend is exact."""
    active = {tuple(i for i, c in enumerate(row) if c != 0) for row in coefficients}
    (first, *others) = active or {()}
    return first[0] if not others and len(first) == 1 else None


def _gap_of(tilt: Tensor) -> Tensor:
    return tilt.logsumexp(0) - math.log(len(tilt)) - tilt.mean(0)


def _variation(tilt: Tensor) -> Tensor:
    weights = (tilt - tilt.amax(0)).exp()
    return weights.std(0, correction=0) / weights.mean(0)  # so that n / (1 + variation^2) is (sum w)^2 / sum w^2


def _least_kl_weight(scores: Tensor) -> float:
    """The alpha at which the mean variation is MOST_VARIATION; 0 where scores are all alike."""
    spread = scores.std(0).max().item()
    if spread == 0:
        return 0.0
    low, high = spread * 1e-3, spread * 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        too_small = _variation(scores / middle).mean() > MOST_VARIATION
        low, high = (middle, high) if too_small else (low, middle)
    return high


def _doubts_of_gaps(gaps: Sequence[Gap]) -> Iterable[str]:
    for name in dict.fromkeys(gap.name for gap in gaps):
        worst = max((gap for gap in gaps if gap.name == name), key=lambda gap: gap.excess)
        if worst.variation <= MOST_VARIATION:
            continue
        yield (
            f"{name}: the KL weight {worst.kl_weight:.3g} is too small: at sigma {worst.sigma:.3g} exp(r / alpha) "
            f"varies by {worst.variation:.2g} times its mean (up to {MOST_VARIATION:g} is fine); a KL weight of "
            f"{worst.least_kl_weight:.2g} would do. Keep alignment at 1 or below, and use LoRAs trained with a larger "
            "KL weight."
        )
        if worst.counting < FEWEST_COUNTING:
            yield (
                f"{name}: only {worst.counting:.1f} of {worst.samples} samples count at sigma {worst.sigma:.3g}, so G "
                "is a lower bound and its error unknown."
            )


def _doubts_of_steps(steps: Sequence[Disagreement], names: Sequence[str]) -> Iterable[str]:
    far = [step for step in steps if step.bend > 0 and step.reach > MOST_REACH]
    if far:
        reach = max(step.reach for step in far)
        yield (
            f"{_listed(far)} the blend goes up to {reach:.2g} times as far from the base as any reward LoRA was "
            "trained to go. Lower alignment."
        )
    for i, name in enumerate(("the blend", *names)):
        bent = [step for step in steps if (step.bend, *step.bends)[i] > MOST_BEND]
        if bent:
            most = max((step.bend, *step.bends)[i] for step in bent)
            yield (
                f"{_listed(bent)} {name} changes the base's direction by up to {most:.0%} of its length (up to "
                f"{MOST_BEND:.0%} is fine): the pull is too strong to be taken as linear."
            )
    against = [step for step in steps if any(cosine < OPPOSED for cosine in step.cosines)]
    if against:
        yield (
            f"{_listed(against)} reward LoRAs pull against each other (cosine below {OPPOSED:g}) and cancel in the "
            "blend. Give one of them more weight, or use them at different steps with a schedule."
        )


def _comforts(steps: Sequence[Disagreement], gaps: Sequence[Gap]) -> Iterable[str]:
    yield (
        f"The blend changes the base's direction by at most {max(step.bend for step in steps):.0%}, and goes no "
        "further than its reward LoRAs were trained to go."
    )
    if gaps:
        most = max(gap.variation for gap in gaps)
        yield f"exp(r / alpha) varies by at most {most:.2g} times its mean: the Jensen gap is small where probed."
    else:
        yield "The Jensen gap was not probed: that needs a reward model."


def _listed(steps: Sequence[Disagreement]) -> str:
    """At step 1 / At steps 1-3, 5:"""
    numbers = [step.step + 1 for step in steps]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"At step{'s' if len(numbers) > 1 else ''} {text}"


def _row(step: Disagreement) -> list[str]:
    bends = [f"{100 * bend:.1f}%" for bend in (*step.bends, step.bend)]
    merged = [] if step.merged is None else [f"{100 * step.merged:.1f}%"]
    return [str(step.step + 1), f"{step.sigma:.3g}", *bends, *(f"{cosine:+.2f}" for cosine in step.cosines), *merged]


def _gap_row(gap: Gap) -> list[str]:
    numbers = (gap.gap, gap.standard_error, gap.variation, gap.excess)
    return [
        str(gap.step + 1), f"{gap.sigma:.3g}", gap.name, f"{gap.kl_weight:.3g}", *(f"{each:.3g}" for each in numbers)
    ]  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
