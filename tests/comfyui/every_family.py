"""All families, and what their latents need: of several streams where the family has video and sound."""

from __future__ import annotations

import comfy.nested_tensor
import pytest
import torch
from torch import Tensor

from .families import FAMILIES, Family
from .newer_families import FURTHER

EVERY = (*FAMILIES, *FURTHER)


def present(families) -> list:
    """These families as parameters of a test; those that this ComfyUI lacks are skipped by name."""
    return [
        pytest.param(
            family, id=family.name, marks=pytest.mark.skipif(family.missing, reason=f"no {family.name} in this ComfyUI")
        )
        for family in families
    ]


def empty(family: Family, images: int = 1) -> dict:
    """An empty latent."""
    shapes = family.latent if isinstance(family.latent[0], tuple) else (family.latent,)
    streams = [torch.zeros(images, *shape) for shape in shapes]
    return {"samples": streams[0] if len(streams) == 1 else comfy.nested_tensor.NestedTensor(streams)}


def flat(latents) -> Tensor:
    """(images, n): all streams of each image in a row."""
    streams = latents.unbind() if latents.is_nested else [latents]
    return torch.cat([stream.flatten(1) for stream in streams], 1)
