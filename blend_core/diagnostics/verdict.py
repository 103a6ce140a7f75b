"""What the measures of a run mean, in words and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from .measures import MOST_VARIATION, Disagreement, Gap
from .ways import SCORE_HEADING, ScoredWays, way_to_take

# Below this many samples that count, one of them decides: G is then a lower bound, and its error is not known.
FEWEST_COUNTING = 4.0
# The approximation drops what is of second order in the pull. A pull of half the base's direction turns it by up to 30
# degrees (the arcsine of a half), and its square is no longer small against it.
MOST_BEND = 0.5
# A blend inside the hull of its bases goes where some training has been. The longest pull of a basis is the last length
# that was trained; 5% are left for rounding and for blends that touch it.
MOST_REACH = 1.05
OPPOSED = -0.5  # a cosine below it: more than half of the shorter pull is undone by the other


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

    blend_evaluations: what the same run costs without diagnosis.  scores: of images made by exact and by merged.
    """

    names: tuple[str, ...]
    formula: str
    steps: tuple[Disagreement, ...]
    gaps: tuple[Gap, ...]
    evaluations: int
    blend_evaluations: int
    scores: tuple[ScoredWays, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that `cosines` are of."""
        return list(combinations(self.names, 2))

    @property
    def verdict(self) -> Verdict:
        """In words, whether to trust the blend."""
        sole = sole_variant([step.coefficients for step in self.steps])
        if sole is not None:
            what = "the base model" if sole == 0 else f"{self.names[sole - 1]} alone"
            return Verdict("exact", (f"Every step is {what}: nothing is approximated.",))
        steps = [step for step in self.steps if any(step.coefficients[1:])]  # the base alone approximates nothing
        doubts = [*_doubts_of_gaps(self.gaps), *_doubts_of_steps(steps, self.names)]
        if doubts:
            return Verdict("doubtful", tuple(doubts))
        return Verdict("fair", tuple(_comforts(steps, self.gaps)))

    @property
    def way(self) -> str:
        """In words, whether merged evaluation would do; an empty text where it was not measured."""
        return way_to_take(self.steps, self.scores)

    def rows(self) -> list[list[str]]:
        """A heading, then one row per step: its number from 1, sigma, bends, the blend's, cosines, merged's."""
        pairs = [f"cos {a}, {b}" for a, b in self.pairs]
        is_measured = any(step.merged is not None for step in self.steps)
        heading = ["step", "sigma", *self.names, "blend", *pairs, *["merged - exact", "its cosine"] * is_measured]
        return [heading, *(_row(step, is_measured) for step in self.steps)]

    def gap_rows(self) -> list[list[str]]:
        """A heading, then one row per probed step and reward."""
        heading = ["step", "sigma", "reward", "KL weight", "G (nats)", "standard error", "variation", "too strong by"]
        return [heading, *(_gap_row(gap) for gap in self.gaps)]

    def score_rows(self) -> list[list[str]]:
        """A heading, then one row per reward: what exact and merged score, and their difference."""
        return [SCORE_HEADING, *(score.row() for score in self.scores)]

    def describe(self) -> str:
        """Everything as plain text."""
        parts = [self.formula, str(self.verdict), *[self.way] * bool(self.way), _aligned(self.rows())]
        parts += [f"Jensen gap\n{_aligned(self.gap_rows())}"] if self.gaps else []
        parts += [f"Rewards of images made both ways\n{_aligned(self.score_rows())}"] if self.scores else []
        spent = f"{self.evaluations} evaluations per image ({self.blend_evaluations} without diagnosis)"
        return "\n\n".join([*parts, spent])

    def to_json(self) -> str:
        """A JSON object of the fields and the verdict."""
        said = {"pairs": self.pairs, "verdict": asdict(self.verdict), "way": self.way}
        return json.dumps({**asdict(self), **said}, indent=1)


def sole_variant(coefficients: Iterable[Sequence[float]]) -> int | None:
    """The variant (0 the base) that every step consists of, None where there is no such: then the blend is exact."""
    active = {tuple(i for i, c in enumerate(row) if c != 0) for row in coefficients}
    (first, *others) = active or {()}
    return first[0] if not others and len(first) == 1 else None


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


def _row(step: Disagreement, with_merged: bool) -> list[str]:
    bends = [f"{100 * bend:.1f}%" for bend in (*step.bends, step.bend)]
    merged = ["-", "-"] if step.merged is None else [f"{100 * step.merged:.1f}%", f"{step.merged_cosine:+.2f}"]
    cosines = [f"{cosine:+.2f}" for cosine in step.cosines]
    return [str(step.step + 1), f"{step.sigma:.3g}", *bends, *cosines, *merged * with_merged]


def _gap_row(gap: Gap) -> list[str]:
    numbers = (gap.gap, gap.standard_error, gap.variation, gap.excess)
    return [
        str(gap.step + 1), f"{gap.sigma:.3g}", gap.name, f"{gap.kl_weight:.3g}", *(f"{x:.3g}" for x in numbers)
    ]  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
