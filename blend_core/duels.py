"""Finding a person's preference by duels: of two images, made at two preferences, which one is better?

    U(x) = -|x - w|^2                                            how an image made at x pleases a person of preference w
    P(first is better) = e / 2 + (1 - e) sigma((U(a) - U(b)) / noise)                       for images made at a and b
    U(a) - U(b) = |b|^2 - |a|^2 + 2 (a - b) . w

An ideal point (Coombs 1950) with logistic choices, of which the share e is a slip of the hand. Each click cuts the
simplex along a plane, softly. A tie counts as a click on either side. The prior is uniform on the simplex; particles
hold the posterior. They are resampled and moved after each click (Gilks and Berzuini 2001), by differences of other
particles (ter Braak 2006), which fits any simplex and any shape of posterior. The next pair is the one, out of many
random ones, whose answer tells most about w: H(E[p]) - E[H(p)] (Houlsby et al. 2011, arXiv 1112.5745).

Everything is a function of the number of rewards, the duels so far, noise and seed: the duels are all that is stored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .blend import parse_numbers
from .errors import BlendError

FEWEST, MOST = 2, 6
ANSWERS = {"A": ">", "B": "<", "=": "="}
SLIP = 0.02
_KNOWN = (
    (0.1, "found: more duels change little"),
    (0.2, "well known"),
    (0.4, "roughly known"),
    (math.inf, "hardly known yet"),
)
_UNITS = 100  # preferences that are shown are whole hundredths, so that text holds them exactly
_PARTICLES, _SWEEPS, _PAIRS = 1024, 5, 1024
_TYPED = 0.025  # how far typed hundredths of six equal weights may sum next to 1
_JUDGES = 256  # particles, in random order, that a pair's information is averaged over


@dataclass(frozen=True)
class Duel:
    """Two preferences and which image was better: `>` the first, `<` the second, `=` neither."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    answer: str

    def __str__(self) -> str:
        return f"{_written(self.first)} {self.answer} {_written(self.second)}"


@dataclass(frozen=True)
class Taste:
    """What duels say about a preference over `count` rewards.

    noise: a lead in U of this much is seen in 73 of 100 clicks; a larger one trusts each click less.
    """

    count: int
    duels: tuple[Duel, ...] = ()
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self):
        if not FEWEST <= self.count <= MOST:
            raise BlendError(
                f"duels over {self.count} rewards were asked for, expected {FEWEST} to {MOST}. Connect as many reward "
                "LoRAs; for more, find a blend of some first."
            )
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise BlendError(f"noise is {self.noise}, expected a number above 0. Set it to 0.05 if unsure.")
        for duel in self.duels:
            _check_duel(duel, self.count)

    def after(self, answer: str) -> Taste:
        """The taste when the pair that it asks about has got `answer`: `>`, `<` or `=`."""
        return Taste(self.count, (*self.duels, Duel(*self.pair, answer)), self.noise, self.seed)

    @property
    def particles(self) -> Tensor:
        """Draws (particles, m) from the posterior of w, each at the same weight, float64."""
        return _particles(self)

    @property
    def preference(self) -> tuple[float, ...]:
        """The posterior mean: the best guess of w."""
        mean = self.particles.mean(0)
        return tuple((mean / mean.sum()).tolist())

    @property
    def spread(self) -> tuple[float, ...]:
        """The posterior standard deviation of each weight."""
        return tuple(self.particles.std(0, correction=0).tolist())

    @property
    def doubt(self) -> float:
        """E sum_i |w_i - mean_i|: how far the best guess lies off, all weights together; 2 at most."""
        particles = self.particles
        return (particles - particles.mean(0)).abs().sum(1).mean().item()

    def describe(self, names: Sequence[str]) -> str:
        """The best guess, each weight with its standard deviation, and in words how well it is known."""
        guess = " + ".join(f"{weight:.2f} {name}" for weight, name in zip(self.preference, names, strict=True))
        known = next(words for limit, words in _KNOWN if self.doubt <= limit)
        columns = zip(names, self.preference, self.spread, strict=True)
        return "\n".join(
            [
                f"{guess} ({known})",
                *(f"{name}: {weight:.2f} ± {spread:.2f}" for name, weight, spread in columns),
                f"duels: {len(self.duels)}; the weights are off by about {self.doubt:.2f}, all together",
            ]
        )

    @property
    def pair(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The two preferences to ask about next, in whole hundredths."""
        return _next_pair(self)


def parse_duels(text: str, count: int, noise: float = 0.05, seed: int = 0) -> Taste:
    """The taste that lines of text tell: one line per duel, such as `0.7, 0.3 > 0.2, 0.8`, or its answer alone.

    A, B or = alone is the answer to the pair that the lines above it lead to. Raises BlendError for other lines.
    """
    taste = Taste(count, (), noise, seed)
    for entry in parse_lines(text):
        duels = taste.after(entry).duels if isinstance(entry, str) else (*taste.duels, entry)
        taste = Taste(count, duels, noise, seed)
    return taste


def parse_lines(text: str) -> list[str | Duel]:
    """One answer (`>`, `<` or `=`) or one duel per line that is not empty. Raises BlendError for other lines."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [_parse_line(line, number) for number, line in lines if line]


def _parse_line(line: str, number: int) -> str | Duel:
    if line.upper() in ANSWERS:
        return ANSWERS[line.upper()]
    for sign in ANSWERS.values():
        first, separator, second = line.partition(sign)
        if separator and first.strip() and second.strip():
            better, worse = (
                parse_numbers(side, f"weights in line {number}", "reward LoRA", "0.6, 0.4") for side in (first, second)
            )
            return Duel(better, worse, sign)
    raise BlendError(
        f"line {number} of the answers is {line!r}, expected A, B or =, or both sides' weights such as "
        "0.7, 0.3 > 0.2, 0.8. Correct or delete that line."
    )


def _check_duel(duel: Duel, count: int) -> None:
    if duel.answer not in ANSWERS.values():
        raise BlendError(f"a duel's answer is {duel.answer!r}, expected one of > < =. Correct or delete that duel.")
    for side in (duel.first, duel.second):
        if len(side) != count:
            raise BlendError(
                f"the duel {duel} has {len(side)} weights on a side for {count} reward LoRAs. Clear the answers to "
                "start anew, or connect the LoRAs that they were given for."
            )
        if not (all(math.isfinite(weight) and weight >= 0 for weight in side) and abs(math.fsum(side) - 1) < _TYPED):
            raise BlendError(
                f"a side of the duel {duel} is {_written(side)}, expected weights from 0 upwards that sum to 1. "
                "Correct or delete that line."
            )


def first_better(w: Tensor, first: Tensor, second: Tensor, noise: float) -> Tensor:
    """P(first is better), (..., duels), of people at w (..., m) for preferences (duels, m)."""
    lead = (second.square() - first.square()).sum(1) + 2 * w @ (first - second).T
    return SLIP / 2 + (1 - SLIP) * torch.sigmoid(lead / noise)


def information(probability: Tensor) -> Tensor:
    """H(E[p]) - E[H(p)] in nats, (pairs,), of probabilities (particles, pairs): what an answer is expected to tell."""
    return _entropy(probability.mean(0)) - _entropy(probability).mean(0)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


# Keyed on frozen values; a run of the node asks for particles, mean, spread and pair of one taste in turn.
@lru_cache(maxsize=128)
def _particles(taste: Taste) -> Tensor:
    generator = _generator(taste, "particles")
    if not taste.duels:
        return _uniform(_PARTICLES, taste.count, generator)
    *before, last = taste.duels
    particles = Taste(taste.count, tuple(before), taste.noise, taste.seed).particles
    chosen = _resampled(_log_likelihood(particles, [last], taste.noise), generator)
    return _moved(particles[chosen], taste, generator)


def _uniform(number: int, count: int, generator: torch.Generator) -> Tensor:
    """Uniform draws (number, count) from the simplex: the gaps between sorted numbers."""
    cuts = torch.rand(number, count - 1, generator=generator, dtype=torch.float64).sort(1).values
    return torch.diff(cuts, prepend=cuts.new_zeros(number, 1), append=cuts.new_ones(number, 1))


def _log_likelihood(w: Tensor, duels: Sequence[Duel], noise: float) -> Tensor:
    """log P(answers | w), (particles,)."""
    first, second = (w.new_tensor([getattr(duel, side) for duel in duels]) for side in ("first", "second"))
    p = first_better(w, first, second, noise)
    for_first, for_second = ([float(duel.answer in signs) for duel in duels] for signs in (">=", "<="))
    return p.log() @ p.new_tensor(for_first) + (1 - p).log() @ p.new_tensor(for_second)


def _resampled(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Indices by systematic resampling: each particle as often as its weight says, to within one."""
    cumulated = log_weights.softmax(0).cumsum(0)
    number = len(cumulated)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    places = (torch.arange(number, dtype=torch.float64) + start) / number
    return torch.searchsorted(cumulated, places).clamp_max(number - 1)


def _moved(particles: Tensor, taste: Taste, generator: torch.Generator) -> Tensor:
    """The particles after Metropolis moves w + g (w_j - w_k) under the posterior, half of them at a time.

    A half moves by differences within the other half, so that each move's proposal is symmetric.
    """
    halves = list(particles[torch.randperm(len(particles), generator=generator)].chunk(2))
    heights = [_log_likelihood(half, taste.duels, taste.noise) for half in halves]
    step = 2.38 / math.sqrt(2 * (taste.count - 1))
    for turn in range(2 * _SWEEPS):
        i = turn % 2
        half, other = halves[i], halves[1 - i]
        j, k = torch.randint(len(other), (2, len(half)), generator=generator)
        proposed = half + step * (other[j] - other[k])
        proposed += (
            1 - proposed.sum(1, keepdim=True)
        ) / taste.count  # else rounding off the simplex grows with each move
        inside = (proposed >= 0).all(1)
        height = _log_likelihood(proposed, taste.duels, taste.noise).masked_fill(~inside, -torch.inf)
        chance = torch.rand(len(half), generator=generator, dtype=torch.float64).log()
        accepted = chance < height - heights[i]
        halves[i] = torch.where(accepted[:, None], proposed, half)
        heights[i] = torch.where(accepted, height, heights[i])
    return torch.cat(halves)


@lru_cache(maxsize=128)
def _next_pair(taste: Taste) -> tuple[tuple[float, ...], tuple[float, ...]]:
    generator = _generator(taste, "pair")
    cuts = torch.randint(_UNITS + 1, (2 * _PAIRS, taste.count - 1), generator=generator).sort(1).values
    ends = cuts.new_zeros(len(cuts), 1), cuts.new_full((len(cuts), 1), _UNITS)
    first, second = (torch.diff(cuts, prepend=ends[0], append=ends[1]).double() / _UNITS).chunk(2)
    best = information(first_better(taste.particles[:_JUDGES], first, second, taste.noise)).argmax()
    return tuple(first[best].tolist()), tuple(second[best].tolist())


def _generator(taste: Taste, purpose: str) -> torch.Generator:
    """A random stream of its own for each length of the history, so that an undone click leaves no trace."""
    name = f"duel {taste.seed} {len(taste.duels)} {purpose}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _written(preference: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in preference)
