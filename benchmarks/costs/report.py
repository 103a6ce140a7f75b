"""docs/costs.md: the measured rows as tables, each with its floor, and what became of the goals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .floors import TRIES

EXACT = ("exact, one after another", "exact, one batch")
ONE_EVALUATION = ("merged", "stratified", "random", "budget 1")
EXACT_GOAL = 0.85  # of m, times the plain sampler
ONE_GOAL = 1.05  # times the plain sampler
HELD_GOAL = 0.03  # of the base's bytes, four adapters of rank 8

_HEAD = (
    "way", "m", "time per image", "times plain", "multiply-adds", "bytes", "floor", "left", "held above base (floor)",
    "busy", "peak",
)  # fmt: skip
_INTRODUCTION = """# What a blend costs

Written by `python benchmarks/run.py cost`, which `make bench` calls: on a GPU with networks of real size in float16 and
bfloat16, on a CPU small. Stock KSampler (Euler, normal schedule), one image, random weights, m random LoRAs on all
attention projections, even weights. Every mode runs beside a plain run, round after round in one process. Times are
medians; *times plain* is the median of side-by-side ratios, lowest and highest in brackets.
"""
LAUNCHES_TITLE = "## Launches per step"
_LAUNCHES = f"""{LAUNCHES_TITLE}

At batch 1 a fast card waits for its host, so the number of operations that a step launches counts. Counted by
`python benchmarks/run.py launches` on a CPU: every operation of torch but views and allocations, between the fourth
and the eighth step; small networks of the shapes above, rank 8, all attention projections adapted. *more per adapted
layer* is what the way launches more than the plain sampler, over the number of adapted layers: on a card with Triton,
the two products of a low-rank addition are one launch where that measured faster, which this count does not see. *read
back* are values that the host waits for.
"""
_LAUNCHES_HEAD = ("way", "m", "launches", "times plain", "more per adapted layer", "read back")
_COSTS_END = """
*multiply-adds* and *bytes* are the least that a way's own passes need, as multiples of the plain sampler's: products of
matrices, convolutions and attention as torch counts them; weights (once per pass) and factors. *floor* is the time that
these take at the rates above each table, per pass the longer of the two; the rates are the best of {tries} products of
large square matrices and of {tries} copies, measured in the same process. What activations move and what a call costs
to launch come on top, so nothing runs at the floor. *left* is time over floor: a way whose *left* is the plain
sampler's wastes nothing beyond it. *times plain* can lie below *multiply-adds* where the plain sampler leaves much of
the machine idle, which one batch of m variants fills.

On a machine that others use, too, compare *times plain*, whose two runs lie side by side: *time*, and with it *left*,
of another m was taken at another moment.

*floor over floor* is the way's floor over the plain sampler's: the ratio if both ran as well as the machine can.

*held above base* is what a way keeps beside the base's weights; its floor is the factors once, in the network's dtype.
*busy* is the time that a GPU's kernels take, as a multiple of the plain sampler's: *times plain* comes to it where the
host launches fast enough. It leaves out what the GPU waits for between two kernels.
*peak* is the most that tensors took on the GPU with only this way's models there; a CPU does not count it.
`budget 1` and `budget 1.1` ask all rewards at their first step, which weighs more the fewer the steps. ComfyUI's
hooks merge their weights anew in every run, beyond the floor. DynamicVRAM, which only ComfyUI's server starts, is off.

The goals are meant for networks of real size, of which four LoRAs of rank 8 are 0.74% (SD 1.5) and 1.81% (SDXL) in the
network's dtype; of a small network they are more.
"""


def costs_page(sections: Iterable[dict]) -> str:
    """The page up to the launches."""
    return "\n".join([_INTRODUCTION, *map(section_text, sections)]) + _COSTS_END.format(tries=TRIES) + "\n"


def launches_page(launches: Mapping[str, dict]) -> str:
    """The rest of the page."""
    return "\n".join([_LAUNCHES, *map(launches_text, launches.items())])


def launches_text(counted: tuple[str, dict]) -> str:
    """One network and what was counted of it."""
    network, facts = counted
    rows = [
        (way, str(m), f"{count:.0f}", f"{ratio:.2f}", f"{more:.2f}", f"{read:.2f}")
        for way, m, count, ratio, more, read in facts["rows"]
    ]
    versions = f"torch {facts['torch']}, ComfyUI {facts['comfyui']}"
    return "\n".join([f"### {network}, {versions}", "", *_table(_LAUNCHES_HEAD, rows), ""])


def section_text(section: dict) -> str:
    """One network, dtype and machine: its table, and what became of the goals."""
    return "\n".join(_lines(section))


def _lines(section: dict) -> Iterator[str]:
    settings, rates = section["settings"], section["rates"]
    yield f"## {section['network']}, {settings['size']}, {section['dtype']}, {section['machine']}"
    yield ""
    yield (
        f"{_CLOCKS[section['device']]} {_SIZES[settings['size']]}, "
        f"{_size(section['base_bytes'])} of weights; latents {settings['latent']} x "
        f"{settings['latent']}, {settings['steps']} steps, cfg {settings['cfg']:g}, rank {settings['rank']}, "
        f"{settings['rounds']} rounds; torch {section['torch']}, ComfyUI {section['comfyui']}. Measured rates: "
        f"{rates['multiply_adds'] / 1e12:.3g} T multiply-adds and {rates['bytes'] / 1e9:.3g} GB per second. One pass: "
        f"{section['pass']['network']['multiply_adds'] / 1e9:.4g} G multiply-adds, the factors of one LoRA "
        f"{section['pass']['adapter']['multiply_adds'] / section['pass']['network']['multiply_adds']:.2%} on top."
    )
    yield ""
    yield from _table(_HEAD, [_cells(row) for row in section["rows"]])
    yield ""
    yield from _table(("goal", "measured", "floor over floor", "wanted", ""), list(_goals(section)))
    yield ""


_CLOCKS = {"cuda": "On a GPU, by CUDA events.", "cpu": "On a CPU, by the wall clock; no GPU was used."}
_SIZES = {
    "real": "Real size",
    "small": "A small network of its shape (every level as wide as the first, prompts of 16 tokens)",
}


def _cells(row: dict) -> tuple[str, ...]:
    return (
        row["mode"],
        str(row["m"] or ""),
        _time(row["seconds"]),
        f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
        f"{row['multiply_adds_ratio']:.3f}",
        f"{row['bytes_ratio']:.3f}",
        _time(row["floor_seconds"]),
        f"{row['left']:.2f}",
        f"{row['held_share']:.2%} ({row['held_share_floor']:.2%})",
        "" if row.get("busy") is None else f"{row['busy']:.2f}",
        "" if row["peak_bytes"] is None else _size(row["peak_bytes"]),
    )


def _goals(section: dict) -> Iterator[tuple[str, ...]]:
    """Every goal with what came of it; of exact, the cheaper execution, which `auto` takes where it fits."""
    rows = [row for row in section["rows"] if row["m"]]
    for m in sorted({row["m"] for row in rows}):
        exact = [row for row in rows if row["m"] == m and row["mode"] in EXACT]
        for best in sorted(exact, key=lambda row: row["ratio"])[:1]:
            yield _goal(f"{best['mode']}, m = {m}", best, EXACT_GOAL * m)
    for row in rows:
        if row["mode"] in ONE_EVALUATION:
            yield _goal(f"{row['mode']}, m = {row['m']}", row, ONE_GOAL)
    for row in rows:
        if row["mode"] in EXACT and row["m"] == 4:
            held, floor = row["held_share"], row["held_share_floor"]
            yield (
                f"memory, {row['mode']}, m = 4",
                f"{held:.2%}",
                f"{floor:.2%}",
                f"{HELD_GOAL:.0%}",
                _met(held, HELD_GOAL),
            )


def _goal(what: str, row: dict, wanted: float) -> tuple[str, ...]:
    return what, f"{row['ratio']:.3f}", f"{row['floor_ratio']:.3f}", f"{wanted:.2f}", _met(row["ratio"], wanted)


def _met(value: float, wanted: float) -> str:
    return "met" if value <= wanted else "missed"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    return ("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
