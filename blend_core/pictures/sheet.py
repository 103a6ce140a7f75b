"""Pictures next to each other, each column under its label, as people share a sweep."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .paper import INK

GAP = 8  # pixels between two pictures
LARGEST_SIDE = 16_384  # of the finished sheet: what a browser still shows


def draw(pictures: Sequence[Sequence[Image.Image]], labels: Sequence[str], columns: int) -> Image.Image:
    """A sheet of labelled columns, `columns` of them next to each other, the next ones below.

    pictures: for every label its pictures, equally many of one size; they stand below each other.
    A sheet that would be larger than LARGEST_SIDE is scaled down.
    """
    width, height = pictures[0][0].size
    size = max(12, width // 18)
    font = ImageFont.load_default(size)
    lines = [_wrapped(label, font, width) for label in labels]
    line = size * 1.3
    header = round(line * max(map(len, lines))) + GAP
    block = header + len(pictures[0]) * (height + GAP)
    blocks = -(-len(labels) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, blocks * block + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (words, column) in enumerate(zip(lines, pictures, strict=True)):
        left, top = GAP + i % columns * (width + GAP), GAP + i // columns * block
        for row, text in enumerate(words):
            pen.text((left, top + row * line), text, INK, font)
        for row, picture in enumerate(column):
            sheet.paste(picture, (left, top + header + row * (height + GAP)))
    sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return sheet


def _wrapped(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The label in at most three lines of the width."""
    fitting = max(1, int(width * len(label) / max(1, font.getlength(label))))
    return textwrap.wrap(label, fitting, max_lines=3, placeholder="...") or [""]
