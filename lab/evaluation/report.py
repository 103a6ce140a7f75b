"""Files of a finished evaluation: scores.parquet, summary.md, .csv and .json, plots, and report.html with all of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from ...blend_core.diagnostics import Estimate
from ..files import write
from ..tables import as_csv, as_markdown
from .evaluation import Evaluation
from .methods import DIALS, METHODS, title_of
from .queue import PICTURES, RECORD, finished
from .summary import Row, Summary, costs_table, scores_table, summarise

TEMPLATE = Path(__file__).parent / "report.html"
_TAB10 = plt.get_cmap("tab10").colors
# without grey, which is the base's
PALETTE = (*_TAB10[:7], *_TAB10[8:], *plt.get_cmap("Dark2").colors, *plt.get_cmap("Set2").colors)
COLOURS = dict(zip(METHODS, PALETTE, strict=False)) | {"base": "#777777", "basis": "#222222"}
MARKERS = dict(zip(METHODS, "osDvPX^>pd*hH8+x<|_", strict=True))  # methods may coincide
SWEPT = (*DIALS, "rlg")  # over alignment
Series = tuple[str, float]
"""A method and its `until`: a line of the plots."""


@dataclass(frozen=True)
class Tables:
    """A summary as text, headings first. at_kl: empty where no alignments were swept."""

    points: list[list[str]]
    at_kl: list[list[str]]
    volumes: list[list[str]]
    notes: str

    @classmethod
    def of(cls, summary: Summary) -> Tables:
        """The tables of a summary."""
        return cls(_points(summary), _at_kl(summary), _volumes(summary), _notes(summary))

    def __iter__(self) -> Iterator[list[list[str]]]:
        """The tables that have rows."""
        return iter([table for table in (self.points, self.at_kl, self.volumes) if table])


def publish(evaluation: Evaluation, out: Path) -> Tables | None:
    """Write everything from the recorded passes; None while some are missing."""
    lines = finished(out)
    if any(pass_.number not in lines for pass_ in evaluation.passes):
        return None
    summary = summarise(evaluation, lines)
    tables = Tables.of(summary)
    write(out / "scores.parquet", _parquet(scores_table(evaluation, lines)))
    write(out / "costs.parquet", _parquet(costs_table(evaluation, lines)))
    write(out / "summary.json", json.dumps(summary.to_json(), indent=1).encode())
    write(out / "summary.csv", as_csv(_numbers(summary)).encode())
    write(out / "summary.md", ("\n\n".join([tables.notes, *map(as_markdown, tables)]) + "\n").encode())
    plots = {"pareto.png": draw_pareto, "kl.png": draw_kl}
    plots |= {"alignment.png": draw_alignment} if any(row.method in SWEPT for row in summary.rows) else {}
    for name, draw in plots.items():
        write(out / name, _png(draw(summary)))
    write(out / "report.html", _html(evaluation, summary, tables, out, list(plots)).encode())
    return tables


def _points(summary: Summary) -> list[list[str]]:
    oracle = any(row.oracle_share is not None for row in summary.rows)
    heads = ["method", "preference", "alignment", *summary.rewards, "weighted", "minus DB-MPA [95%]"]
    heads += ["of the oracle's gain [95%]"] * oracle + ["path KL", *summary.watched]
    heads += ["evaluations", "s/image", "peak MB"]
    return [heads, *(_texts(row, oracle) for row in summary.rows)]


def _volumes(summary: Summary) -> list[list[str]]:
    return [["method", "hypervolume"], *([k, _interval(v)] for k, v in summary.hypervolumes.items())]


def _at_kl(summary: Summary) -> list[list[str]]:
    heads = ["preference", "path KL", "which is that of", "method", "weighted [95%]", "minus DB-KLA [95%]"]
    rows = [
        [
            shown(row.preference),
            f"{row.kl:.1f}",
            METHODS[row.of].title,
            title_of(row.method, row.until),
            _interval(row.weighted),
            "" if row.against_kla is None else _interval(row.against_kla),
        ]
        for row in summary.at_kl
    ]
    return [heads, *rows] if rows else []


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def draw_pareto(summary: Summary) -> Figure:
    """Means of two rewards, one line per method along its preferences, bars of one standard error; a panel per pair."""
    pairs = list(combinations(summary.rewards, 2)) or [summary.rewards * 2]
    figure, axes = _panels(len(pairs))
    for axis, pair in zip(axes, pairs, strict=True):
        for series, rows in _by_series(summary, skip=SWEPT).items():
            values, errors = ([[row.rewards[name][i] for row in rows] for name in pair] for i in (0, 1))
            style = "" if series[0] in ("base", "basis") else "-"
            _line(axis, series, *values, style, xerr=errors[0], yerr=errors[1])
        axis.set_xlabel(f"mean {pair[0]}")
        axis.set_ylabel(f"mean {pair[1]}")
    _legend(figure, axes)
    return figure


def draw_alignment(summary: Summary) -> Figure:
    """Each reward over alignment, a line per preference of kla without a cut; rlg as rings."""
    figure, axes = _panels(len(summary.rewards))
    dials = [row for row in summary.rows if row.method in ("kla", "rlg") and row.until == 1]
    preferences = list(dict.fromkeys(row.preference for row in dials))
    for axis, name in zip(axes, summary.rewards, strict=True):
        for i, preference in enumerate(preferences):
            for method, style in (("kla", "o-"), ("rlg", "o")):
                rows = [row for row in dials if (row.method, row.preference) == (method, preference)]
                if rows:
                    xs, ys = [row.alignment for row in rows], [row.rewards[name][0] for row in rows]
                    label = f"{METHODS[method].title} {shown(preference)}"
                    ring = {"ms": 9, "mfc": "none"} if method == "rlg" else {"ms": 4}
                    error = None if method == "rlg" else [row.rewards[name][1] for row in rows]
                    axis.errorbar(xs, ys, yerr=error, fmt=style, color=f"C{i}", lw=1.2, label=label, **ring)
        axis.set_xlabel("alignment (0: base, 1: as trained)")
        axis.set_ylabel(f"mean {name}")
    _legend(figure, axes)
    return figure


def draw_kl(summary: Summary) -> Figure:
    """Weighted reward over path KL, a panel per preference that several methods share."""
    known = [row for row in summary.rows if row.kl is not None]
    methods = {
        w: {row.method for row in known if row.preference == w} for w in dict.fromkeys(r.preference for r in known)
    }
    shared = [preference for preference, names in methods.items() if len(names) > 2]
    figure, axes = _panels(max(len(shared), 1))
    for axis, preference in zip(axes, shared, strict=False):
        for series, rows in _by_series(summary).items():
            rows = sorted((r for r in rows if r.kl is not None and r.preference == preference), key=lambda row: row.kl)
            if rows:
                xs, (ys, errors) = [row.kl for row in rows], zip(*(row.weighted for row in rows), strict=True)
                _line(axis, series, xs, ys, "-" if series[0] in SWEPT else "", yerr=errors)
        axis.set_title(shown(preference), fontsize=9)
        axis.set_xlabel("path KL to the base (nats)")
        axis.set_ylabel("weighted reward")
    _legend(figure, axes)
    return figure


def shown(preference: Sequence[float]) -> str:
    """A preference as the tables print it."""
    return ", ".join(f"{weight:g}" for weight in preference)


def _texts(row: Row, oracle: bool) -> list[str]:
    several = row.n > 1  # one image says nothing of errors
    means = [f"{mean:+.3f}" + f" ± {error:.3f}" * several for mean, error in (*row.rewards.values(), row.weighted)]
    against = row.against_mpa
    difference = "" if against is None else _interval(against) if several else f"{against.mean:+.3f}"
    share = ["" if row.oracle_share is None else _percent(row.oracle_share)] * oracle
    kl = "" if row.kl is None else f"{row.kl:.2f}"
    head = [row.title, shown(row.preference), f"{row.alignment:g}"]
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
    shown_only = [f"{mean:.3f}" for mean, _ in row.watched.values()]
    return [*head, *means, difference, *share, kl, *shown_only, f"{row.evaluations:.1f}", f"{row.seconds:.3f}", peak]


def _percent(share: Estimate) -> str:
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _notes(summary: Summary) -> str:
    """How the tables are to be read."""
    reference = ", ".join(f"{name} {value:.3f}" for name, value in zip(summary.rewards, summary.reference, strict=True))
    return (
        f"n = {summary.rows[0].n} images per row, the same prompts and noise in every row. ± one standard error over "
        "images; brackets: 95% bootstrap intervals over prompts and seeds. Minus DB-MPA: weighted reward less DB-MPA's "
        "at that preference, image by image. Path KL: nats per image, where a method blends means. Evaluations: of the "
        "network per image, guidance counted as one. Peak MB: of the GPU, or of the process. At equal path KL: "
        f"linearly between two alignments of a dial. Hypervolume: of all rows of a method, above {reference}, the "
        "lowest mean of each reward. Until 0.9: the base model alone after 90% of the steps."
    )


def _numbers(summary: Summary) -> list[list[object]]:
    """The points with every figure in full, headings first."""
    ends = [f"{name} {part}" for name in (*summary.rewards, "weighted") for part in ("mean", "standard error")]
    heads = ["method", "preference", "alignment", "until", "n", *ends]
    heads += [f"{name}{end}" for name in ("minus DB-MPA", "oracle share") for end in ("", " low", " high")]
    heads += [f"{name} {part}" for name in summary.watched for part in ("mean", "standard error")]
    rows = [[*heads, "path KL", "evaluations", "seconds", "peak bytes"]]
    for row in summary.rows:
        numbers = [number for pair in (*row.rewards.values(), row.weighted) for number in pair]
        numbers += [*_ends(row.against_mpa), *_ends(row.oracle_share)]
        numbers += [number for pair in row.watched.values() for number in pair]
        numbers += [row.kl, row.evaluations, row.seconds, row.peak_bytes]
        cells = ["" if number is None else number for number in numbers]
        rows.append([row.method, shown(row.preference), row.alignment, row.until, row.n, *cells])
    return rows


def _ends(estimate: Estimate | None) -> tuple[float | None, ...]:
    return (None,) * 3 if estimate is None else (estimate.mean, estimate.low, estimate.high)


def _html(evaluation: Evaluation, summary: Summary, tables: Tables, out: Path, plots: Sequence[str]) -> str:
    """The report, its pictures inside it."""
    pictures = {
        title_of(*series): [(_caption(row), _inline(out / PICTURES / f"{row.picture:06d}.png")) for row in rows]
        for series, rows in _by_series(summary, distinct=True).items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf8")).render(
        notes=tables.notes,
        table=tables.points,
        volumes=tables.volumes,
        at_kl=tables.at_kl,
        plots=[_inline(out / name) for name in plots],
        pictures=pictures,
        prompt=evaluation.prompts[0],
        seed=evaluation.protocol.prompts.first_seed,
        record=(out / RECORD).read_text(encoding="utf8"),
    )


def _caption(row: Row) -> str:
    if row.method == "base":
        return ""
    return f"λ = {row.alignment:g}: {shown(row.preference)}" if row.method in SWEPT else shown(row.preference)


def _inline(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _by_series(summary: Summary, skip: Sequence[str] = (), distinct: bool = False) -> dict[Series, list[Row]]:
    """distinct: one row per picture; the base has a single one for all its preferences."""
    rows = list({row.picture: row for row in summary.rows}.values()) if distinct else summary.rows
    by_series: dict[Series, list[Row]] = {}
    for row in rows:
        if row.method not in skip:
            by_series.setdefault((row.method, row.until), []).append(row)
    return by_series


def _panels(count: int):
    """A figure with so many panels, three in a row at most."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=((6, 5, 4.4)[columns - 1] * columns, 4.4 * rows), squeeze=False)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def _line(axis, series: Series, xs, ys, style: str, **bars) -> None:
    """A method is a colour and a marker; with a cut the marker is filled and the line broken."""
    method, until = series
    look = {"fmt": MARKERS[method], "color": COLOURS[method], "ms": 6, "lw": 1.2, "alpha": 0.4 + 0.6 * until**4}
    look |= {"mfc": "none"} if until == 1 else {}
    axis.errorbar(xs, ys, label=title_of(*series), ls=style and ("-" if until == 1 else "--"), **look, **bars)


def _legend(figure: Figure, axes) -> None:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = int(figure.get_figwidth() / 1.4)
    rows = -(-len(entries) // columns)
    figure.tight_layout(rect=(0, (0.22 * rows + 0.1) / figure.get_figheight(), 1, 1))
    figure.legend(entries.values(), entries, loc="lower center", ncol=columns, fontsize=8, frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
