"""Rewards against one another as a picture: a panel per pair of rewards, below it what each number stands for."""

from __future__ import annotations

import textwrap
from itertools import combinations

from PIL import Image

from ..pareto import Scored, Trade
from .paper import COLOURS, FAINT, GREY, INK, Paper, even_ticks

PANEL, LEFT, BELOW, ABOVE, BETWEEN = 400, 80, 56, 104, 24  # pixels; of each panel, and around it
CELL, PICTURE = 132, 108  # of the strip: a cell's width, a thumbnail's longest side
SHADE, ON_FRONT, BEHIND = "#e8f0f8", COLOURS[0], "#a9a9a9"


def draw(trade: Trade) -> Image.Image:
    """The picture, RGB. On the front: filled and blue."""
    pairs = list(combinations(range(len(trade.names)), 2))
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    width = max(columns * (PANEL + LEFT + BETWEEN) + BETWEEN, 3 * CELL)
    cells = max(1, (width - 2 * BETWEEN) // CELL)
    pictured = any(point.picture is not None for point in trade.points)
    cell_height = 44 + (PICTURE + 8 if pictured else 0)
    strip = ABOVE + rows * (PANEL + BELOW + BETWEEN)
    paper = Paper(width, strip + -(-len(trade.points) // cells) * cell_height + 12)
    count = f"{len(trade.front)} of {len(trade.points)} on the Pareto front (blue)"
    paper.text(BETWEEN, 20, f"Hypervolume {trade.volume:.4g}", 22)
    paper.text(BETWEEN, 50, f"above {', '.join(f'{number:.3g}' for number in trade.reference)};  {count}", 14, GREY)
    for i, pair in enumerate(pairs):
        left = BETWEEN + LEFT + i % columns * (PANEL + LEFT + BETWEEN)
        _Panel(paper, trade, pair, left, ABOVE + i // columns * (PANEL + BELOW + BETWEEN)).draw()
    for i, point in enumerate(trade.points):
        _draw_cell(paper, i, point, BETWEEN + i % cells * CELL, strip + i // cells * cell_height, i in trade.front)
    return paper.finished()


class _Panel:
    """Two of the rewards, the first across and the second upwards."""

    def __init__(self, paper: Paper, trade: Trade, pair: tuple[int, int], left: float, top: float):
        self.paper, self.trade, self.pair, self.left, self.top = paper, trade, pair, left, top
        self.spans = [self._span(axis) for axis in pair]

    def draw(self) -> None:
        """Axes, the shade below the front where there are two rewards, error bars, numbered points."""
        if len(self.trade.names) == 2:
            self._shade()
        self._axes()
        for i, point in enumerate(self.trade.points):
            self._point(i, point, i in self.trade.front)

    def _span(self, axis: int) -> tuple[float, float]:
        ends = [point.means[axis] + side * point.errors[axis] for point in self.trade.points for side in (-1, 1)]
        low, high = min(ends), max(ends)
        margin = 0.08 * (high - low) or 0.5
        return low - margin, high + margin

    def _place(self, across: float, up: float) -> tuple[float, float]:
        (left, right), (bottom, top) = self.spans
        x, y = (across - left) / (right - left), (up - bottom) / (top - bottom)
        return self.left + PANEL * min(max(x, 0.0), 1.0), self.top + PANEL * (1 - min(max(y, 0.0), 1.0))

    def _shade(self) -> None:
        steps = sorted({self.trade.points[i].means for i in self.trade.front})
        steps = [step for step in steps if all(a > b for a, b in zip(step, self.trade.reference, strict=True))]
        if not steps:
            return
        base_x, base_y = self.trade.reference
        outline, before = [(base_x, base_y)], base_x
        for x, y in steps:
            outline += [(before, y), (x, y)]
            before = x
        self.paper.area([self._place(*corner) for corner in [*outline, (before, base_y)]], SHADE)

    def _axes(self) -> None:
        bottom, right = self.top + PANEL, self.left + PANEL
        for (low, high), upright in zip(self.spans, (False, True), strict=True):
            for tick in even_ticks(low, high):
                x, y = self._place(self.spans[0][0], tick) if upright else self._place(tick, self.spans[1][0])
                self.paper.line([(x, y), (right, y) if upright else (x, self.top)], FAINT)
                where = (self.left - 8, y, "rm") if upright else (x, bottom + 6, "mt")
                self.paper.text(*where[:2], f"{tick:.3g}", 13, GREY, where[2])
        self.paper.line([(self.left, self.top), (self.left, bottom), (right, bottom)], GREY, 1.5)
        across, up = (textwrap.shorten(self.trade.names[axis], 40, placeholder="...") for axis in self.pair)
        self.paper.text((self.left + right) / 2, bottom + 28, across, 15, INK, "mt")
        self.paper.text(self.left - LEFT + 4, self.top - 8, up, 15, INK, "lb")

    def _point(self, number: int, point: Scored, on_front: bool) -> None:
        colour = ON_FRONT if on_front else BEHIND
        across, up = (point.means[axis] for axis in self.pair)
        wide, high = (point.errors[axis] for axis in self.pair)
        self.paper.line([self._place(across - wide, up), self._place(across + wide, up)], colour)
        self.paper.line([self._place(across, up - high), self._place(across, up + high)], colour)
        x, y = self._place(across, up)
        self.paper.dot(x, y, 5, colour, hollow=not on_front)
        self.paper.text(x + 9, y - 5, str(number + 1), 14, INK, "lb")


def _draw_cell(paper: Paper, number: int, point: Scored, x: float, y: float, on_front: bool) -> None:
    """The number, the label in two lines at most, and the thumbnail."""
    paper.dot(x + 6, y + 9, 5, ON_FRONT if on_front else BEHIND, hollow=not on_front)
    paper.text(x + 16, y + 2, str(number + 1), 14)
    for i, line in enumerate(textwrap.wrap(point.label, 17, max_lines=2, placeholder="...")):
        paper.text(x + 36, y + 3 + 16 * i, line, 12, GREY)
    if point.picture is not None:
        thumbnail = point.picture.copy()
        thumbnail.thumbnail((PICTURE, PICTURE))
        paper.picture(x, y + 40, thumbnail)
