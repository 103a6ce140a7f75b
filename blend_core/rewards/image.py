"""Rewards that need no weights."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from ..errors import BlendError

JPEG_QUALITY = 95


def jpeg_compressibility(images: Tensor) -> Tensor:
    """Minus the size in kB (1000 bytes) of each image as a JPEG of quality 95, (batch,).

    DDPO's reward (arXiv 2305.13301). Usual range -150 to -10 at 512 x 512; it grows with the area. No gradient.
    """
    from PIL import Image

    check_images(images)
    pixels = (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    sizes = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        sizes.append(buffer.tell())
    return -torch.tensor(sizes, dtype=torch.float32, device=images.device) / 1000


def colourfulness(images: Tensor) -> Tensor:
    """M = sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2) on 0..255, (batch,); Hasler and Suesstrunk 2003.

    rg = R - G, yb = (R + G) / 2 - B. Grey is 0, 33 moderately, 59 quite, 109 extremely colourful. Differentiable.
    """
    check_images(images)
    red, green, blue = (images.float() * 255).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponents.var(-1, unbiased=False).sum(0)
    mean = opponents.mean(-1).square().sum(0)
    tiny = 1e-8  # keeps the gradient finite on grey images
    return (spread + tiny).sqrt() + 0.3 * (mean + tiny).sqrt()


def check_images(images: Tensor) -> None:
    """Raise BlendError unless `images` is (batch, 3, height, width) within [0, 1], give or take rounding."""
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise BlendError(
            f"images have the shape {tuple(images.shape)}, expected (batch, 3, height, width) with at least one image. "
            "ComfyUI's IMAGE has its channels last: move them to the second place."
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= -0.01 and high <= 1.01):  # false for NaN too
        raise BlendError(
            f"image values run from {low:g} to {high:g}, expected 0 to 1. Divide by 255, or map [-1, 1] by x / 2 + 0.5."
        )
