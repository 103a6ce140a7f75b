"""Coefficients that differ over the image: blends painted over one another through masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .blend import blend
from .errors import BlendError
from .plan import UNNAMED, Call, Evaluate, Plan


@dataclass(frozen=True)
class PaintedPlan(Plan):
    """An exact evaluation whose weights are maps: c(position) = sum over layers of maps[layer] * layers[layer].

    layers: (steps, layers, k), every layer's weights of the k variants.  maps: (layers, 1 or batch, height, width), how
    much of each layer a latent position gets; they sum to 1 over the layers.  weights: not 0 where a step needs the
    variant.
    """

    layers: Tensor
    maps: Tensor

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Call = UNNAMED) -> Tensor:
        """The blended prediction of `step`, (rows, ..., height, width). Raises BlendError for a part of the image."""
        images = images or self.batch
        variants, _ = self.active(step, images)
        predictions = evaluate(variants)
        coefficients = self.coefficients(step, predictions[0], images)
        return blend(coefficients, predictions).to(predictions.dtype)

    def coefficients(self, step: int, x: Tensor, images: int) -> Tensor:
        """The maps of the variants that count at `step`, (k, ...) broadcastable to x (rows, ..., height, width).

        images: how many images the rows hold, group by group. Raises BlendError for a part of the image.
        """
        used = self.weights[step] != 0
        maps = torch.einsum("lk,lbhw->kbhw", self.layers[step][:, used].to(self.maps), self._maps(x, images))
        if maps.shape[1] > 1:  # rows hold groups of the same images: conditional, unconditional...
            maps = maps.repeat(1, len(x) // images, 1, 1)
        between = [1] * (x.dim() - 3)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return maps.view(*maps.shape[:2], *between, *maps.shape[-2:]).to(x.device, dtype)

    def _maps(self, x: Tensor, images: int) -> Tensor:
        if x.shape[-2:] != self.maps.shape[-2:]:
            raise BlendError(
                f"a part of the image was sampled apart ({x.shape[-1]} x {x.shape[-2]} of "
                f"{self.maps.shape[-1]} x {self.maps.shape[-2]} latent positions), as conditioning areas and tiled "
                "samplers do, so it is unknown where in the region it lies. Use masks on the conditioning instead of "
                "areas, or remove the region."
            )
        if self.maps.shape[1] not in (1, images):
            raise BlendError(
                f"the region has {self.maps.shape[1]} masks, but {images} images are evaluated at once. Give one mask "
                "for all images."
            )
        return self.maps


def painted(layers: Sequence[Tensor], masks: Sequence[Tensor], size: tuple[int, int], images: int) -> PaintedPlan:
    """The plan of layers[0] everywhere, then each further layer painted over it through its mask.

    layers: (steps, 1 + m) coefficients each.  masks: one per further layer, (1 or images, height, width) in [0, 1] at
    any resolution.  size: (height, width) of the latents. Raises BlendError for masks of another count of images.
    """
    maps = [torch.ones(1, *size, dtype=torch.float64)]
    for mask in masks:
        over = _resized(mask, size, images)
        maps = [below * (1 - over) for below in maps] + [over]
    batch = max(mask.shape[0] for mask in maps)
    table = torch.stack([torch.as_tensor(layer, dtype=torch.float64) for layer in layers], dim=1)
    needed = (table != 0).any(1)
    variants = needed.any(0).nonzero().flatten()
    return PaintedPlan(
        variants=variants[None, :, None].expand(len(table), -1, images),
        weights=needed[:, variants].double(),
        layers=table[:, :, variants],
        maps=torch.stack([mask.expand(batch, *size) for mask in maps]),
    )


def _resized(mask: Tensor, size: tuple[int, int], images: int) -> Tensor:
    """(1 or images, *size): every latent position takes the mean of the mask's values that it covers."""
    mask = mask if mask.dim() == 3 else mask[None]
    if mask.dim() != 3 or mask.shape[0] not in (1, images):
        raise BlendError(
            f"a region's mask has the shape {tuple(mask.shape)} for {images} images, expected one mask for all, or one "
            "per image."
        )
    return F.interpolate(mask[:, None].double().clamp(0, 1), size, mode="area")[:, 0]
