"""The figures of an evaluation: means, intervals, hypervolumes, and methods at equal path KL.

An evaluation is a cube: every point has an image for every prompt and seed, from the same noise. So two methods are
compared image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from ...blend_core.diagnostics import Estimate
from ...blend_core.pareto import hypervolume
from ...blend_core.rewards import Draws, estimate
from .evaluation import Evaluation, Pass
from .methods import DIALS, title_of


@dataclass(frozen=True)
class Row:
    """What a point gave, seen with a preference. n: images.  rewards: name -> (mean, standard error over images).

    watched: the same of the scores that no preference weighs.
    until: the share of the steps after which the base is alone.  against_mpa: weighted reward minus that of DB-MPA at
    this preference and until 1, pair by pair; None where there is none.
    oracle_share: the gain over the base, of the oracle's; None without.  kl: mean, nats.  seconds: per image.
    peak_bytes: of memory, None where unknown.
    """

    method: str
    preference: tuple[float, ...]
    alignment: float
    until: float
    n: int
    rewards: dict[str, tuple[float, float]]
    weighted: tuple[float, float]
    against_mpa: Estimate | None
    oracle_share: Estimate | None
    kl: float | None
    watched: dict[str, tuple[float, float]]
    evaluations: float
    seconds: float
    peak_bytes: int | None
    picture: int  # the number of its first image

    @property
    def title(self) -> str:
        """What the tables call its method."""
        return title_of(self.method, self.until)


@dataclass(frozen=True)
class AtKL:
    """A method of one preference at the alignment where it is as far from the base as another one is.

    kl: that distance, nats.  of: the method it is taken from, as trained and to the end.  until: of the method.
    weighted: between two alignments, linearly in the path KL.  against_kla: less DB-KLA's at that distance, without a
    cut; None for DB-KLA itself.
    """

    preference: tuple[float, ...]
    of: str
    kl: float
    method: str
    until: float
    weighted: Estimate
    against_kla: Estimate | None


@dataclass(frozen=True)
class Summary:
    """rows: in the protocol's order; the base has one per preference.  hypervolumes: by title, above `reference`.

    at_kl: methods at equal path KL, where their alignments were swept.
    """

    rewards: tuple[str, ...]
    watched: tuple[str, ...]
    rows: list[Row]
    hypervolumes: dict[str, Estimate]
    reference: tuple[float, ...]
    at_kl: list[AtKL]

    def to_json(self) -> dict:
        """Everything, for a program."""
        return asdict(self)


def scores_table(evaluation: Evaluation, lines: Mapping[int, dict]) -> pa.Table:
    """One row per image, in the order of the queue; lines: by number of the pass, as queue.finished has them."""
    rows = []
    for pass_ in evaluation.passes:
        line = lines[pass_.number]
        for i, (prompt, seed) in enumerate(zip(pass_.prompts, pass_.seeds, strict=True)):
            scores = {f"reward.{name}": values[i] for name, values in line["scores"].items()}
            kl = None if line["kl"] is None else line["kl"][i]
            spent = {"kl": kl, "evaluations": line["evaluations"]}
            what = {"image": pass_.first + i, **_key(pass_), "prompt": prompt, "seed": seed}
            rows.append({**what, **scores, **spent})
    rewards = dict.fromkeys((name for name in rows[0] if name.startswith("reward.")), pa.float64())
    kinds = {"image": pa.int64(), **_KEY, "prompt": pa.string(), "seed": pa.int64(), **rewards}
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds | dict.fromkeys(("kl", "evaluations"), pa.float64())))


def costs_table(evaluation: Evaluation, lines: Mapping[int, dict]) -> pa.Table:
    """One row per pass: what differs from one run to the next. seconds: per image."""
    rows = []
    for pass_ in evaluation.passes:
        spent = {name: lines[pass_.number][name] for name in ("seconds", "peak_bytes")}
        rows.append({"first_image": pass_.first, **_key(pass_), "images": len(pass_.seeds), **spent})
    kinds = {"first_image": pa.int64(), **_KEY, "images": pa.int64(), "seconds": pa.float64(), "peak_bytes": pa.int64()}
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


_KEY = {
    "method": pa.string(), "preference": pa.list_(pa.float64()), "alignment": pa.float64(), "until": pa.float64()
}  # fmt: skip


def _key(pass_: Pass) -> dict:
    """What a pass is of."""
    return {name: getattr(pass_.point, name) for name in _KEY}


def summarise(evaluation: Evaluation, lines: Mapping[int, dict]) -> Summary:
    """The figures of all passes; lines: by number of the pass, as queue.finished has them."""
    cells = _cells(evaluation, lines)
    draws, protocol = Draws(*cells[0].scores.shape[1:]), evaluation.protocol
    count = len(protocol.rewards.names)
    names, watched = tuple(lines[0]["scores"])[:count], tuple(lines[0]["scores"])[count:]
    pairs = [(cell, w) for cell in cells for w in ([cell.preference] if cell.preference else protocol.preferences)]
    rows = [_row(cells, cell, preference, names, draws) for cell, preference in pairs]
    reference = tuple(np.min([cell.scores.mean((1, 2)) for cell in cells], axis=0).tolist())
    titles = dict.fromkeys(title_of(*cell.series) for cell in cells)
    volumes = {title: _volume([c for c in cells if title_of(*c.series) == title], reference, draws) for title in titles}
    at_kl = [row for preference in protocol.dial_preferences for row in _at_equal_kl(cells, preference, draws)]
    return Summary(names, watched, rows, volumes, reference, at_kl)


def _volume(cells: Sequence[_Cell], reference: Sequence[float], draws: Draws) -> Estimate:
    """The hypervolume of a method's means; in draws it is above the same reference."""
    drawn = np.stack([draws.means(cell.scores) for cell in cells])  # (points, rewards, count)
    volumes = [hypervolume(drawn[..., i].tolist(), reference) for i in range(drawn.shape[-1])]
    return estimate(hypervolume([cell.scores.mean((1, 2)).tolist() for cell in cells], reference), np.array(volumes))


def _at_equal_kl(cells: Sequence[_Cell], preference: tuple[float, ...], draws: Draws) -> Iterator[AtKL]:
    """Every dial of a preference where it is as far from the base as DB-MPA and the oracle are."""
    swept = [cell for cell in cells if cell.method in DIALS and cell.preference == preference and cell.kl is not None]
    dials = {series: [c for c in swept if c.series == series] for series in dict.fromkeys(c.series for c in swept)}
    curves = {series: _Curve(sorted(d, key=_distance), preference, draws) for series, d in dials.items() if len(d) > 1}
    for of in ("mpa", "oracle"):
        level = _cell_of(cells, of, preference)
        if level is None or level.kl is None or not curves:
            continue
        values = {series: curve.at(_distance(level)) for series, curve in curves.items() if curve.reaches(level)}
        kla = values.get(("kla", 1.0))
        for series, (value, drawn) in values.items():
            is_compared = kla is not None and series != ("kla", 1.0)
            against = estimate(value - kla[0], drawn - kla[1]) if is_compared else None
            yield AtKL(preference, of, _distance(level), *series, estimate(value, drawn), against)


class _Curve:
    """Weighted reward over path KL of one preference at several alignments, nearest to the base first."""

    def __init__(self, cells: Sequence[_Cell], preference: Sequence[float], draws: Draws):
        kls, values = [cell.kl for cell in cells], [cell.weighted(preference) for cell in cells]
        self.kls, self.values = ([cube.mean() for cube in cubes] for cubes in (kls, values))
        self.drawn = [np.stack([draws.means(cube) for cube in cubes]) for cubes in (kls, values)]

    def reaches(self, level: _Cell) -> bool:
        """Whether the alignments go that far; no curve is drawn on beyond its last point."""
        return _distance(level) <= max(self.kls) * (1 + 1e-9)

    def at(self, kl: float) -> tuple[float, np.ndarray]:
        """The reward at a distance, of all images and of every draw (count,)."""
        kls, values = self.drawn
        drawn = [np.interp(kl, kls[:, i], values[:, i]) for i in range(kls.shape[1])]
        return float(np.interp(kl, self.kls, self.values)), np.array(drawn)


@dataclass(frozen=True)
class _Cell:
    """A point's images. scores: (rewards, prompts, seeds).  kl: (prompts, seeds), None without one.

    watched: (prompts, seeds) of each score that no preference weighs.
    """

    method: str
    preference: tuple[float, ...]
    alignment: float
    until: float
    first: int
    scores: np.ndarray
    watched: dict[str, np.ndarray]
    kl: np.ndarray | None
    evaluations: float
    seconds: float
    peak_bytes: int | None

    @property
    def series(self) -> tuple[str, float]:
        """The method and its `until`."""
        return self.method, self.until

    def weighted(self, preference: Sequence[float]) -> np.ndarray:
        """(prompts, seeds)"""
        return np.tensordot(np.asarray(preference), self.scores, 1)


def _distance(cell: _Cell) -> float:
    return float(cell.kl.mean())


def _cells(evaluation: Evaluation, lines: Mapping[int, dict]) -> list[_Cell]:
    """One per point, in the protocol's order."""
    return [
        _cell(passes, [lines[pass_.number] for pass_ in passes], evaluation)
        for passes in evaluation.passes_by_point().values()
    ]


def _cell(passes: Sequence[Pass], lines: Sequence[dict], evaluation: Evaluation) -> _Cell:
    """The images of a point. lines: one per pass."""
    prompts, weighed = len(evaluation.prompts), len(evaluation.protocol.rewards.names)
    point, images = passes[0].point, [len(pass_.seeds) for pass_ in passes]
    scores = {name: [score for line in lines for score in line["scores"][name]] for name in lines[0]["scores"]}
    cubes = {name: np.array(values).reshape(prompts, -1) for name, values in scores.items()}
    kl = None if any(line["kl"] is None for line in lines) else [nats for line in lines for nats in line["kl"]]
    peaks = [line["peak_bytes"] for line in lines]
    return _Cell(
        point.method,
        point.preference,
        point.alignment,
        point.until,
        passes[0].first,
        np.stack(list(cubes.values())[:weighed]),
        dict(list(cubes.items())[weighed:]),
        None if kl is None else np.array(kl).reshape(prompts, -1),
        float(np.mean(np.repeat([line["evaluations"] for line in lines], images))),
        float(np.average([line["seconds"] for line in lines], weights=images)),
        None if None in peaks else max(peaks),
    )


def _row(cells: Sequence[_Cell], cell: _Cell, preference: tuple[float, ...], names: Sequence[str], draws: Draws) -> Row:
    weighted = cell.weighted(preference)
    mpa = _cell_of(cells, "mpa", preference)
    return Row(
        cell.method,
        preference,
        cell.alignment,
        cell.until,
        weighted.size,
        {name: _mean(scores) for name, scores in zip(names, cell.scores, strict=True)},
        _mean(weighted),
        None if mpa is None or mpa is cell else draws.mean(weighted - mpa.weighted(preference)),
        _oracle_share(cells, weighted, preference, draws),
        None if cell.kl is None else _distance(cell),
        {name: _mean(values) for name, values in cell.watched.items()},
        cell.evaluations,
        cell.seconds,
        cell.peak_bytes,
        cell.first,
    )


def _oracle_share(
    cells: Sequence[_Cell], weighted: np.ndarray, preference: tuple[float, ...], draws: Draws
) -> Estimate | None:
    base, oracle = _cell_of(cells, "base", ()), _cell_of(cells, "oracle", preference)
    if base is None or oracle is None:
        return None
    start, end = base.weighted(preference), oracle.weighted(preference)
    gain, most = draws.means(weighted - start), draws.means(end - start)
    if (end - start).mean() <= 0 or most.min() <= 0:
        return None  # a share of nothing
    return estimate((weighted - start).mean() / (end - start).mean(), gain / most)


def _cell_of(cells: Sequence[_Cell], method: str, preference: tuple[float, ...]) -> _Cell | None:
    """The row of a method that a preference's rows are compared with: the one without a cut."""
    whole = [cell for cell in cells if cell.preference == preference and cell.until == 1]
    return next((c for c in whole if method in (c.method, DIALS.get(c.method) if c.alignment == 1 else None)), None)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error over images (0 for one)."""
    error = values.std(ddof=1) / values.size**0.5 if values.size > 1 else 0.0
    return float(values.mean()), float(error)
