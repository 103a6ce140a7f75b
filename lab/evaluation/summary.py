"""The tables of an evaluation.

An evaluation is a cube: every point has an image for every prompt and seed, from the same noise. So two methods are
compared image by image, and the bootstrap draws prompts and seeds with replacement, each for itself, because images of
one prompt (or seed) share what is easy or hard about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from ...blend_core.pareto import hypervolume
from .methods import METHODS
from .protocol import Protocol
from .queue import passes_of

DRAWS = 4000  # of the bootstrap: the ends of an interval then move by less than a tenth of its length
FIRST = 0  # the seed of its draws


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What a point gave, seen with a preference. n: images.  rewards: name -> (mean, standard error over images).

    against_mpa: weighted reward minus that of DB-MPA at this preference, pair by pair; None where there is none.
    oracle_share: the gain over the base, of the oracle's; None without.  kl: mean, nats.  seconds: per image.
    """

    method: str
    preference: tuple[float, ...]
    alignment: float
    n: int
    rewards: dict[str, tuple[float, float]]
    weighted: tuple[float, float]
    against_mpa: Estimate | None
    oracle_share: float | None
    kl: float | None
    evaluations: float
    seconds: float
    picture: int  # the number of its first image

    @property
    def title(self) -> str:
        """What the tables call its method."""
        return METHODS[self.method].title


@dataclass(frozen=True)
class Summary:
    """rows: in the protocol's order; the base has one per preference.  hypervolumes: by method, above `reference`."""

    rewards: tuple[str, ...]
    rows: list[Row]
    hypervolumes: dict[str, float]
    reference: tuple[float, ...]
    facts: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        """Everything, for a program."""
        return asdict(self)


def scores_table(protocol: Protocol, prompts: Sequence[str], lines: dict[int, dict]) -> pa.Table:
    """One row per image, in the order of the queue; lines: by number of the pass, as queue.finished has them."""
    rows = []
    for each in passes_of(protocol, prompts):
        line = lines[each.number]
        point = asdict(each.point)
        point.pop("search")
        for i, (prompt, seed) in enumerate(zip(each.prompts, each.seeds, strict=True)):
            scores = {f"reward.{name}": values[i] for name, values in line["scores"].items()}
            kl = None if line["kl"] is None else line["kl"][i]
            spent = {"kl": kl, "evaluations": line["evaluations"], "seconds": line["seconds"]}
            rows.append({"image": each.first + i, **point, "prompt": prompt, "seed": seed, **scores, **spent})
    return pa.Table.from_pylist(rows, schema=_schema([name for name in rows[0] if name.startswith("reward.")]))


def summarise(protocol: Protocol, table: pa.Table) -> Summary:
    """The tables of all images, as scores_table has them."""
    cells = _cells(table)
    names = tuple(name.removeprefix("reward.") for name in table.column_names if name.startswith("reward."))
    seen = [(cell, w) for cell in cells for w in ([cell.preference] if cell.preference else protocol.preferences)]
    rows = [_row(cells, cell, preference, names) for cell, preference in seen]
    means = {method: [_means(row) for row in rows if row.method == method] for method in {row.method for row in rows}}
    reference = tuple(np.min([each for points in means.values() for each in points], axis=0).tolist())
    volumes = {method: hypervolume(means[method], reference) for method in dict.fromkeys(row.method for row in rows)}
    return Summary(names, rows, volumes, reference)


def bootstrap(differences: np.ndarray) -> Estimate:
    """Mean and 95% percentile interval of differences (prompts, seeds), prompts and seeds drawn with replacement."""
    generator = np.random.default_rng(FIRST)
    prompts, seeds = differences.shape
    shares = (generator.multinomial(count, np.full(count, 1 / count), DRAWS) / count for count in (prompts, seeds))
    means = np.einsum("bp,ps,bs->b", next(shares), differences, next(shares))
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(differences.mean()), float(low), float(high))


@dataclass(frozen=True)
class _Cell:
    """A point's images. scores: (rewards, prompts, seeds)."""

    method: str
    preference: tuple[float, ...]
    alignment: float
    first: int
    scores: np.ndarray
    kl: float | None
    evaluations: float
    seconds: float

    def weighted(self, preference: Sequence[float]) -> np.ndarray:
        """(prompts, seeds)"""
        return np.tensordot(np.asarray(preference), self.scores, 1)


def _cells(table: pa.Table) -> list[_Cell]:
    columns = {name: table[name].to_pylist() for name in table.column_names}
    rewards = [columns[name] for name in table.column_names if name.startswith("reward.")]
    keys = list(zip(columns["method"], map(tuple, columns["preference"]), columns["alignment"], strict=True))
    prompts = len(dict.fromkeys(columns["prompt"]))
    cells = []
    for key in dict.fromkeys(keys):
        start, count = keys.index(key), keys.count(key)
        part = slice(start, start + count)
        scores = np.array([reward[part] for reward in rewards]).reshape(len(rewards), prompts, -1)
        kl = columns["kl"][part]
        spent = (float(np.mean(columns[name][part])) for name in ("evaluations", "seconds"))
        cells.append(_Cell(*key, columns["image"][start], scores, None if None in kl else float(np.mean(kl)), *spent))
    return cells


def _row(cells: Sequence[_Cell], cell: _Cell, preference: tuple[float, ...], names: Sequence[str]) -> Row:
    weighted = cell.weighted(preference)
    mpa = _found(cells, "mpa", preference)
    return Row(
        cell.method,
        preference,
        cell.alignment,
        weighted.size,
        {name: _mean(each) for name, each in zip(names, cell.scores, strict=True)},
        _mean(weighted),
        None if mpa is None or mpa is cell else bootstrap(weighted - mpa.weighted(preference)),
        _oracle_share(cells, weighted, preference),
        cell.kl,
        cell.evaluations,
        cell.seconds,
        cell.first,
    )


def _oracle_share(cells: Sequence[_Cell], weighted: np.ndarray, preference: tuple[float, ...]) -> float | None:
    base, oracle = _found(cells, "base", ()), _found(cells, "oracle", preference)
    if base is None or oracle is None:
        return None
    start = base.weighted(preference).mean()
    gain = oracle.weighted(preference).mean() - start
    return float((weighted.mean() - start) / gain) if gain > 0 else None


def _found(cells: Sequence[_Cell], method: str, preference: tuple[float, ...]) -> _Cell | None:
    return next((cell for cell in cells if (cell.method, cell.preference) == (method, preference)), None)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error over images (0 for one)."""
    error = values.std(ddof=1) / values.size**0.5 if values.size > 1 else 0.0
    return float(values.mean()), float(error)


def _means(row: Row) -> tuple[float, ...]:
    return tuple(mean for mean, _ in row.rewards.values())


def _schema(rewards: Sequence[str]) -> pa.Schema:
    kinds = {
        "image": pa.int64(),
        "method": pa.string(),
        "preference": pa.list_(pa.float64()),
        "alignment": pa.float64(),
    }
    kinds |= {"prompt": pa.string(), "seed": pa.int64()} | dict.fromkeys(rewards, pa.float64())
    return pa.schema(kinds | dict.fromkeys(("kl", "evaluations", "seconds"), pa.float64()))
