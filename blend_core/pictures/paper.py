"""A drawing surface of Pillow, which ComfyUI ships, in pixels of the finished picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#2c6fbb", "#d0672e", "#3a9a5b", "#8456b5", "#b5942a", "#c5425c", "#4aa3a8", "#7a5c43")
INK, GREY, FAINT = "#222222", "#777777", "#dddddd"
FINER = 2  # drawn so many times larger, then scaled down: Pillow's lines have jagged edges


class Paper:
    """A white sheet that is drawn on, then finished."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * FINER, height * FINER), "white")
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """Through points (x, y)."""
        scaled = [(x * FINER, y * FINER) for x, y in points]
        self.pen.line(scaled, colour, round(width * FINER), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: str, hollow: bool = False) -> None:
        """A filled circle, or its rim."""
        box = [(x - radius) * FINER, (y - radius) * FINER, (x + radius) * FINER, (y + radius) * FINER]
        self.pen.ellipse(box, "white" if hollow else colour, colour, round(2 * FINER))

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """A filled one with round corners."""
        self.pen.rounded_rectangle([left * FINER, top * FINER, right * FINER, bottom * FINER], 5 * FINER, colour)

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK, anchor: str = "lt") -> float:
        """Returns how wide the words are."""
        font = ImageFont.load_default(size * FINER)
        self.pen.text((x * FINER, y * FINER), words, colour, font, anchor=anchor)
        return self.pen.textlength(words, font) / FINER

    def area(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """A filled polygon."""
        self.pen.polygon([(x * FINER, y * FINER) for x, y in points], colour)

    def picture(self, x: float, y: float, picture: Image.Image) -> None:
        """Another picture, its upper left corner at (x, y)."""
        larger = picture.resize((picture.width * FINER, picture.height * FINER), Image.Resampling.NEAREST)
        self.image.paste(larger, (round(x * FINER), round(y * FINER)))

    def finished(self) -> Image.Image:
        """RGB, in its final size."""
        return self.image.resize((self.image.width // FINER, self.image.height // FINER), Image.Resampling.LANCZOS)


def even_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, five or so. low < high."""
    size = 10 ** math.floor(math.log10(high - low))
    gap = next(step * size for step in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (step * size) <= 5)
    return [i * gap for i in range(math.ceil(low / gap), math.floor(high / gap) + 1)]
