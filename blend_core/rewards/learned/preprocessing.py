"""Pixels as vision towers want them, in differentiable torch; equal to the official PIL pipelines to their rounding.

All take images (batch, 3, height, width) in [0, 1] and give (batch, 3, size, size).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def cropped(images: Tensor, size: int) -> Tensor:
    """Shorter edge to `size`, the middle cut out: CLIP's own preprocessing (torchvision's)."""
    pixels = _shorter_edge(images, size)
    top, left = (round((edge - size) / 2) for edge in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def cropped_low(images: Tensor, size: int) -> Tensor:
    """The same with halves of a pixel rounded down: transformers' preprocessing, which PickScore was trained with."""
    pixels = _shorter_edge(images, size)
    top, left = ((edge - size) // 2 for edge in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _shorter_edge(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    short = min(height, width)
    return resized(images, int(size * height / short), int(size * width / short))


def padded(images: Tensor, size: int) -> Tensor:
    """Longer edge to `size`, black around the rest: HPSv2's preprocessing.

    HPSv2 resizes float tensors, not 8-bit images: the overshoot of bicubic stays, to about -0.05 and 1.06.
    """
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    pixels = _interpolated(images, max(1, round(height * scale)), max(1, round(width * scale)))
    down, right = (size - edge for edge in pixels.shape[-2:])
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


def squashed(images: Tensor, size: int) -> Tensor:
    """Both edges to `size`, whatever the aspect: SigLIP's preprocessing."""
    return resized(images, size, size)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as Pillow does it: across, then down, the overshoot of each cut off."""
    across = _interpolated(images, images.shape[-2], width).clamp(0, 1)
    return _interpolated(across, height, width).clamp(0, 1)


def _interpolated(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixels - mean) / std per channel."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
