"""A diagnosis as a picture: one panel per question, the verdict below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..diagnostics import MOST_BEND, MOST_VARIATION, OPPOSED, SAME, Diagnosis
from .paper import COLOURS, FAINT, GREY, INK, Paper, even_ticks

LEVELS = {"exact": "#3a9a5b", "fair": "#2c6fbb", "doubtful": "#c5425c"}
WIDTH, PANEL, BETWEEN, LEFT, RIGHT = 1000, 190, 84, 70, 290  # pixels; a panel's legend stands in its right margin
MOST_LINES = 8  # of one panel
MOST_LETTERS = 32  # of a label in the legend


@dataclass
class Line:
    """A curve. points: (step from 1, value).  notes: next to each point, above or below.  trusted: hollow where not."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    above: Sequence[bool] = ()
    trusted: Sequence[bool] = ()
    width: int = 2


@dataclass
class PlotPanel:
    """lines over steps.  marks: (value, words) of horizontal lines that mean something.  unit: behind the numbers."""

    title: str
    lines: Sequence[Line]
    low: float
    high: float
    marks: Sequence[tuple[float, str]] = ()
    percent: bool = False
    logarithmic: bool = False
    ticks: Sequence[float] = field(default_factory=list)

    def height(self, value: float) -> float:
        """Where a value stands, 0 at the bottom and 1 at the top."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def number(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:.3g}%" if self.percent else f"{value:.3g}"


def draw(diagnosis: Diagnosis) -> Image.Image:
    """The picture, RGB, WIDTH pixels wide."""
    panels = [_bends(diagnosis), *_cosines(diagnosis), *_merged(diagnosis), *_gaps(diagnosis)]
    sentences = [*diagnosis.verdict.reasons, *diagnosis.way.splitlines()]
    reasons = [line for sentence in sentences for line in textwrap.wrap(f"- {sentence}", 128)]
    top = 84
    bottom = top + len(panels) * (PANEL + BETWEEN)
    paper = Paper(WIDTH, bottom + 22 * (len(reasons) + 1) + 16)
    _headline(paper, diagnosis)
    for i, panel in enumerate(panels):
        _draw_panel(paper, panel, diagnosis, top + i * (PANEL + BETWEEN))
    for i, line in enumerate(reasons):
        paper.text(24, bottom + 22 * i, line, 15)
    return paper.finished()


def _fitted(label: str) -> str:
    """A label of one or two names, each shortened where they do not fit the legend."""
    names = label.split(", ")
    most = MOST_LETTERS // len(names)
    return ", ".join(name if len(name) <= most else f"{name[: most - 1]}…" for name in names)


def _bends(diagnosis: Diagnosis) -> PlotPanel:
    lines = [
        Line(name, COLOURS[i % len(COLOURS)], [(step.step + 1, step.bends[i]) for step in diagnosis.steps])
        for i, name in enumerate(diagnosis.names)
    ]
    lines += [Line("the blend", INK, [(step.step + 1, step.bend) for step in diagnosis.steps], width=3)]
    high = 1.15 * max(value for line in lines for _, value in line.points) or 1.0
    marks = [(MOST_BEND, "strong")] if high > MOST_BEND else []
    title = "How much each changes the direction of the base model"
    return PlotPanel(title, lines, 0.0, high, marks, percent=True, ticks=even_ticks(0.0, high))


def _cosines(diagnosis: Diagnosis) -> list[PlotPanel]:
    lines = [
        Line(f"{a}, {b}", COLOURS[-1 - i % len(COLOURS)], [(s.step + 1, s.cosines[i]) for s in diagnosis.steps])
        for i, (a, b) in enumerate(diagnosis.pairs)
    ]
    title = "Do reward LoRAs agree? 1: the same pull, 0: independent, -1: opposite (cosine)"
    marks = [(0.0, ""), (OPPOSED, "they cancel")]
    return [PlotPanel(title, lines, -1.0, 1.0, marks, ticks=(-1, -0.5, 0, 0.5, 1))] if lines else []


def _merged(diagnosis: Diagnosis) -> list[PlotPanel]:
    points = [(step.step + 1, step.merged) for step in diagnosis.steps if step.merged is not None]
    if not points:
        return []
    high = max(1.15 * max(gap for _, gap in points), 2 * SAME)
    title = "Merged or exact? Their distance, over the blend's way from the base"
    line = Line("merged - exact", COLOURS[2], points, width=3)
    return [PlotPanel(title, [line], 0.0, high, [(SAME, "equal")], percent=True, ticks=even_ticks(0.0, high))]


def _gaps(diagnosis: Diagnosis) -> list[PlotPanel]:
    if not diagnosis.gaps:
        return []
    lines = []
    most = {gap.step: max(other.excess for other in diagnosis.gaps if other.step == gap.step) for gap in diagnosis.gaps}
    for name in dict.fromkeys(gap.name for gap in diagnosis.gaps):
        gaps = [gap for gap in diagnosis.gaps if gap.name == name]
        colour = COLOURS[diagnosis.names.index(name) % len(COLOURS)]
        points = [(gap.step + 1, max(gap.excess, 1e-3)) for gap in gaps]
        notes = [f"G {_short(gap.gap)} ± {_short(gap.standard_error)}" for gap in gaps]
        above = [gap.excess >= most[gap.step] for gap in gaps]
        lines += [Line(name, colour, points, notes, above, [gap.variation <= MOST_VARIATION for gap in gaps])]
    values = [value for line in lines for _, value in line.points]
    low, high = min(0.1, *(value / 2 for value in values)), max(10.0, *(2 * value for value in values))
    ticks = [10.0**i for i in range(-4, 9) if low <= 10.0**i <= high]
    title = "Jensen gap G in nats: how many times too strong is the reward? 1 and below (filled) is fine"
    return [PlotPanel(title, lines, low, high, [(1.0, "too strong")], logarithmic=True, ticks=ticks)]


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _headline(paper: Paper, diagnosis: Diagnosis) -> None:
    paper.text(24, 18, textwrap.shorten(diagnosis.formula, 80), 22)
    level = diagnosis.verdict.level
    paper.box(WIDTH - 150, 14, WIDTH - 24, 46, LEVELS[level])
    paper.text(WIDTH - 87, 30, level, 19, "white", "mm")
    spent = f"{len(diagnosis.steps)} steps, {diagnosis.evaluations} evaluations per image"
    paper.text(24, 50, f"{spent} ({diagnosis.blend_evaluations} without diagnosis)", 14, GREY)


def _draw_panel(paper: Paper, panel: PlotPanel, diagnosis: Diagnosis, top: float) -> None:
    last = diagnosis.steps[-1].step + 1
    right, upper = WIDTH - RIGHT, top + 26

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - 1) / max(last - 1, 1)
        return LEFT + 14 + across * (right - LEFT - 28), upper + PANEL * (1 - panel.height(value))

    paper.text(LEFT - 46, top, panel.title, 16)
    for tick in panel.ticks:
        y = place(1, tick)[1]
        paper.line([(LEFT, y), (right, y)], FAINT)
        paper.text(LEFT - 8, y, panel.number(tick), 13, GREY, "rm")
    for value, words in panel.marks:
        y = place(1, value)[1]
        paper.line([(LEFT, y), (right, y)], GREY, 1.5)
        paper.text(right + 6, y, words, 13, GREY, "lm")
    _draw_steps(paper, diagnosis, place, upper + PANEL)
    for line in panel.lines:
        _draw_line(paper, line, [place(*point) for point in line.points])
    _draw_legend(paper, panel.lines[:MOST_LINES], right + 84 if panel.marks else right + 16, upper)


def _draw_steps(paper: Paper, diagnosis: Diagnosis, place, y: float) -> None:
    """Numbers of the steps, and the noise level below some of them."""
    every = max(1, math.ceil(len(diagnosis.steps) / 10))
    for step in diagnosis.steps[::every]:
        x = place(step.step + 1, 0)[0]
        paper.text(x, y + 6, str(step.step + 1), 13, GREY, "mt")
        paper.text(x, y + 21, f"{step.sigma:.2g}", 11, GREY, "mt")
    paper.text(WIDTH - RIGHT + 6, y + 6, "step", 13, GREY, "lt")
    paper.text(WIDTH - RIGHT + 6, y + 21, "noise level", 11, GREY, "lt")


def _draw_line(paper: Paper, line: Line, places: Sequence[tuple[float, float]]) -> None:
    paper.line(places, line.colour, line.width)
    trusted = line.trusted or [True] * len(places)
    for (x, y), filled in zip(places, trusted, strict=True):
        paper.dot(x, y, 5 if line.trusted else 2.5, line.colour, hollow=not filled)
    for (x, y), note, above in zip(places, line.notes, line.above, strict=False):
        paper.text(x + 9, y - 6 if above else y + 6, note, 12, line.colour, "lb" if above else "lt")


def _draw_legend(paper: Paper, lines: Sequence[Line], x: float, y: float) -> None:
    for i, line in enumerate(lines):
        paper.line([(x, y + 8 + 20 * i), (x + 16, y + 8 + 20 * i)], line.colour, 3)
        paper.text(x + 22, y + 8 + 20 * i, _fitted(line.label), 14, INK, "lm")
