"""Procedural captioned pictures: one coloured shape on a plain, striped or dotted background.

Labels are a dict of long tensors (count,): colour, shape, background, texture, indexing the word lists below.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.18, 0.66, 0.25),
    "blue": (0.16, 0.32, 0.86),
    "yellow": (0.95, 0.82, 0.15),
    "purple": (0.58, 0.22, 0.72),
    "orange": (0.95, 0.52, 0.12),
}
BACKGROUNDS = {
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.10),
    "grey": (0.55, 0.55, 0.58),
    "teal": (0.35, 0.72, 0.72),
}
SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "striped", "dotted")
WORDS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
}
SIZE = 32  # pixels
SUPERSAMPLING = 3


def random_labels(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Independent uniform labels."""
    return {name: torch.randint(len(words), (count,), generator=generator) for name, words in WORDS.items()}


def draw(labels: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """The pictures of `labels`, (count, 3, 32, 32) in [0, 1]; place, size and tints vary with the generator."""
    count = len(labels["shape"])
    y, x = _grid()
    foreground = _tinted(COLOURS, labels["colour"], generator)
    background = _tinted(BACKGROUNDS, labels["background"], generator)
    phase = torch.rand(count, generator=generator)[:, None, None] * 2 * math.pi
    pattern = _pattern(labels["texture"], x, y, phase)
    darker = torch.where(background.mean(1, keepdim=True) > 0.4, background * 0.72, background * 0.6 + 0.25)
    image = torch.where(pattern[:, None], darker[:, :, None, None], background[:, :, None, None])
    inside = _inside(labels["shape"], x, y, generator)
    image = torch.where(inside[:, None], foreground[:, :, None, None], image)
    return F.avg_pool2d(image, SUPERSAMPLING)


def caption(words: dict[str, str], *, texture: bool = True, background: bool = True) -> str:
    """Such as `a red circle on a striped white background`; parts may be left out."""
    subject = f"a {words['colour']} {words['shape']}"
    if not background:
        return subject
    pattern = f"{words['texture']} " if texture else ""
    return f"{subject} on a {pattern}{words['background']} background"


def words_of(labels: dict[str, Tensor], index: int) -> dict[str, str]:
    """The words of one picture's labels."""
    return {name: WORDS[name][int(labels[name][index])] for name in WORDS}


def random_prompts(count: int, generator: torch.Generator) -> list[str]:
    """Full captions of random pictures."""
    labels = random_labels(count, generator)
    return [caption(words_of(labels, i)) for i in range(count)]


def _grid() -> tuple[Tensor, Tensor]:
    pixels = SIZE * SUPERSAMPLING
    axis = (torch.arange(pixels) + 0.5) / pixels * 2 - 1
    return torch.meshgrid(axis, axis, indexing="ij")


def _tinted(palette: dict[str, tuple], index: Tensor, generator: torch.Generator) -> Tensor:
    colours = torch.tensor(list(palette.values()))[index]
    brightness = 0.92 + 0.16 * torch.rand(len(index), 1, generator=generator)
    tint = (torch.rand(len(index), 3, generator=generator) - 0.5) * 0.06
    return (colours * brightness + tint).clamp(0, 1)


def _pattern(texture: Tensor, x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    stripes = torch.sin((x + y)[None] * math.pi * 4 + phase) > 0
    dots = torch.sin(x[None] * math.pi * 4 + phase) * torch.sin(y[None] * math.pi * 4 + phase) > 0.35
    kind = texture[:, None, None]
    return ((kind == 1) & stripes) | ((kind == 2) & dots)


def _inside(shape: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    count = len(shape)
    centre = (torch.rand(2, count, 1, 1, generator=generator) - 0.5) * 0.4
    radius = 0.5 + torch.rand(count, 1, 1, generator=generator) * 0.16
    u, v = (x[None] - centre[0]) / radius, (y[None] - centre[1]) / radius
    masks = torch.stack(
        [
            u * u + v * v < 1,
            (u.abs() < 0.86) & (v.abs() < 0.86),
            (v < 0.8) & (v > 2 * u.abs() - 1.1),
            ((u.abs() < 0.34) & (v.abs() < 1)) | ((v.abs() < 0.34) & (u.abs() < 1)),
        ]
    )
    return masks[shape, torch.arange(count)]
