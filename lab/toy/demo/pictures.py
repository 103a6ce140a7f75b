"""The demo's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .points import Point

TITLES = {
    "soup": "rewarded soup\n(weights averaged)",
    "mpa": "DB-MPA\n(exact)",
    "random": "DB-MPA-LS\n(1 per step)",
    "stratified": "stratified\n(1 per step)",
    "kla": "DB-KLA\n(equal shares)",
}
COLOURS = {"base": "#777777", "single": "#222222", "soup": "#d08a2e", "mpa": "#2c6fbb", "random": "#c5425c"}
COLOURS |= {"stratified": "#3a9a5b", "kla": "#8456b5"}
SHOWN = 2  # prompts side by side


def draw_grid(points: Sequence[Point], prompts: Sequence[str], path: Path) -> None:
    """One row of images per method, from the first reward to the second; a row over alignment below."""
    rows = {method: [p for p in points if p.setting.method == method] for method in TITLES}
    columns = max(len(row) for row in rows.values())
    figure = plt.figure(figsize=(SHOWN * columns * 1.1 + 1.6, len(rows) * 1.3 + 0.5))
    gap = 0.3  # of a picture, between the prompts
    widths = ([1] * columns + [gap]) * SHOWN
    grid = figure.add_gridspec(
        len(rows), len(widths), width_ratios=widths, left=0.13, right=1, top=0.9, bottom=0.01, wspace=0.06, hspace=0.24
    )
    for number, (method, row) in enumerate(rows.items()):
        for i in range(SHOWN * columns):
            prompt, column = divmod(i, columns)
            axis = figure.add_subplot(grid[number, prompt * (columns + 1) + column])
            point = row[column]
            image = point.images[prompt * (len(point.images) // len(prompts))]
            _show(axis, image, _column_title(point, method))
            if i == 0:
                axis.set_ylabel(TITLES[method], rotation=0, ha="right", va="center", fontsize=9)
            if number == 0 and column == columns // 2:
                axis.text(
                    0.5, 1.28, prompts[prompt], transform=axis.transAxes, ha="center", fontsize=10, style="italic"
                )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _column_title(point: Point, method: str) -> str:
    if method == "kla":
        return f"alignment {point.setting.alignment:g}"
    first, second = point.setting.weights
    names = list(point.rewards)
    return f"{first:.0%} {names[0]}" if second < 1 else f"100% {names[1]}"


def _show(axis: Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=7, pad=2)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_pareto(points: Sequence[Point], path: Path) -> None:
    """Mean of the second reward over mean of the first, one line per method, bars of one standard error."""
    names = list(points[0].rewards)[:2]
    figure, axis = plt.subplots(figsize=(7, 5))
    for method, colour in COLOURS.items():
        row = [point for point in points if point.setting.method == method]
        values = [[point.rewards[name] for point in row] for name in names]
        errors = [[point.standard_errors[name] for point in row] for name in names]
        style = "o" if method in ("base", "single") else "o-"
        label = TITLES.get(method, method).replace("\n", " ")
        axis.errorbar(*values, xerr=errors[0], yerr=errors[1], fmt=style, ms=4, lw=1.2, color=colour, label=label)
    axis.set_xlabel(f"mean {names[0]} (in the base's standard deviations)")
    axis.set_ylabel(f"mean {names[1]}")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
