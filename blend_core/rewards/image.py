"""Rewards that need no weights: formulas on pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Card, Reward

JPEG_QUALITY = 95
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, JPEG's own
TINY = 1e-8  # keeps gradients of square roots finite on flat images


class Formula(Reward):
    """A reward that is a function of the images alone, (batch, 3, height, width) -> (batch,)."""

    def __init__(self, card: Card, function: Callable[[Tensor], Tensor]):
        super().__init__(card)
        self.function = function

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The function's value."""
        return self.function(images)


def jpeg_incompressibility(images: Tensor) -> Tensor:
    """Size in kB (1000 bytes) of each image as a JPEG of quality 95, (batch,); DDPO's reward (arXiv 2305.13301).

    It grows with the area. No gradient.
    """
    from PIL import Image

    pixels = (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    sizes = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        sizes.append(buffer.tell())
    return torch.tensor(sizes, dtype=torch.float32, device=images.device) / 1000


def jpeg_compressibility(images: Tensor) -> Tensor:
    """Minus the size in kB (1000 bytes) of each image as a JPEG of quality 95, (batch,)."""
    return -jpeg_incompressibility(images)


def colourfulness(images: Tensor) -> Tensor:
    """M = sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2) on 0..255, (batch,); Hasler and Suesstrunk 2003.

    rg = R - G, yb = (R + G) / 2 - B. Grey is 0, 33 moderately, 59 quite, 109 extremely colourful.
    """
    red, green, blue = (images * 255).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponents.var(-1, unbiased=False).sum(0)
    mean = opponents.mean(-1).square().sum(0)
    return (spread + TINY).sqrt() + 0.3 * (mean + TINY).sqrt()


def luma(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B, (batch, height, width)."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1)


def brightness(images: Tensor) -> Tensor:
    """Mean luma, 0 black to 1 white, (batch,)."""
    return luma(images).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of luma (RMS contrast, Peli 1990), 0 flat to 0.5 half black and half white, (batch,)."""
    return (luma(images).flatten(1).var(-1, unbiased=False) + TINY).sqrt()


def saturation(images: Tensor) -> Tensor:
    """Mean of max(R, G, B) - min(R, G, B), the chroma of the HSV model: 0 grey to 1 pure colours, (batch,)."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def sharpness(images: Tensor) -> Tensor:
    """Variance of luma's Laplacian on 0..255, (batch,) (Pech-Pacheco et al. 2000). Flat 0; it falls under blur.

    The border, where the Laplacian lacks a neighbour, is left out; images below 3 pixels count as flat.
    """
    if min(images.shape[-2:]) < 3:
        return images.flatten(1).sum(1) * 0
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(luma(images * 255)[:, None], kernel).flatten(1).var(-1, unbiased=False)


def symmetry(images: Tensor) -> Tensor:
    """1 minus the root mean square difference between the image and its mirror image, left to right, (batch,).

    1 is a perfect mirror, 0 black against white.
    """
    difference = images - images.flip(-1)
    return 1 - (difference.square().flatten(1).mean(-1) + TINY**2).sqrt()


FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Card]] = {
    function.__name__: (function, Card(function.__name__, measures, usual_range, differentiable))
    for function, measures, usual_range, differentiable in (
        (colourfulness, "how colourful the image is (Hasler and Suesstrunk)", (0.0, 110.0), True),
        (brightness, "mean luma", (0.0, 1.0), True),
        (contrast, "spread of luma", (0.0, 0.5), True),
        (saturation, "mean chroma: how far from grey", (0.0, 1.0), True),
        (sharpness, "fine detail: variance of the Laplacian", (0.0, 5000.0), True),
        (symmetry, "likeness to the mirror image", (0.0, 1.0), True),
        (jpeg_compressibility, "minus the JPEG's size in kB (512 x 512)", (-150.0, -10.0), False),
        (jpeg_incompressibility, "the JPEG's size in kB (512 x 512)", (10.0, 150.0), False),
    )
}
