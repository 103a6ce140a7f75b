"""Random files of other kinds than LoRA, and a network with one of them merged by ComfyUI's own loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from unittest import mock

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn

from .loras import Layer

RANK = 2


class _Random:
    """Tensors of which each is a good part of what it is added to."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, size: float = 0.5) -> Tensor:
        return size * torch.randn(*shape, generator=self.generator)


def lora(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """A plain LoRA."""
    down = draw(RANK, *layer.shape[1:], size=0.3 / math.prod(layer.shape[1:]) ** 0.5)
    return {"lora_down.weight": down, "lora_up.weight": draw(layer.shape[0], RANK, *[1] * (len(layer.shape) - 2))}


def loha(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """LoHa; of a high rank on every layer but those of one kernel, so that some are built whole."""
    out, width = layer.shape[0], math.prod(layer.shape[1:])
    rank = RANK if len(layer.shape) == 2 else 20
    size = 1 / (rank * width**0.5) ** 0.5
    parts = {name: draw(out, rank) for name in ("hada_w1_a", "hada_w2_a")}
    return parts | {name: draw(rank, width, size=size) for name in ("hada_w1_b", "hada_w2_b")}


def loha_with_cores(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """LoHa with Tucker cores on convolutions."""
    if len(layer.shape) == 2:
        return loha(layer, draw)
    parts = {f"hada_w{i}_a": draw(RANK, layer.shape[0]) for i in (1, 2)}
    parts |= {f"hada_w{i}_b": draw(RANK, layer.shape[1], size=0.3) for i in (1, 2)}
    return parts | {f"hada_t{i}": draw(RANK, RANK, *layer.shape[2:], size=0.3) for i in (1, 2)}


def lokr(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """LoKr: a small whole matrix, and a product."""
    out, width = layer.shape[0] // 4, layer.shape[1] // 4
    kernel = math.prod(layer.shape[2:])
    parts = {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(out, RANK)}
    return parts | {"lokr_w2_b": draw(RANK, width * kernel, size=0.5 / (width * kernel) ** 0.5)}


def lokr_whole(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """LoKr of two whole matrices, whose alpha counts for nothing."""
    shape = (layer.shape[0] // 4, layer.shape[1] // 4, *layer.shape[2:])
    return {"lokr_w1": draw(4, 4), "lokr_w2": draw(*shape, size=0.2 / math.prod(shape[1:]) ** 0.5)}


def difference(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """The whole difference of a weight."""
    return {"diff": draw(*layer.shape, size=0.3 / math.prod(layer.shape[1:]) ** 0.5)}


def dora_of_columns(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """LyCORIS's DoRA with magnitudes per input; of square weights ComfyUI reads them as per output."""
    ones = [1] * (len(layer.shape) - 2)
    return lora(layer, draw) | {"dora_scale": 1 + draw(1, layer.shape[1], *ones).abs()}


def dora_of_rows(layer: Layer, draw: _Random) -> dict[str, Tensor]:
    """DoRA with magnitudes per output."""
    ones = [1] * (len(layer.shape) - 1)
    return lora(layer, draw) | {"dora_scale": 1 + draw(layer.shape[0], *ones).abs()}


def written(kind: Callable, layers: Iterable[Layer], stem: Callable[[str], str], seed: int) -> dict[str, Tensor]:
    """The tensors of a file that changes all layers in one way. stem(name): how it names a module of diffusers."""
    draw, tensors = _Random(seed), {}
    for layer in layers:
        parts = kind(layer, draw)
        scaled = {} if "diff" in parts else {"alpha": torch.tensor(1.0)}
        tensors |= {f"{stem(layer.name)}.{role}": tensor for role, tensor in (parts | scaled).items()}
    return tensors


def norms_and_biases(base_model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Differences of every norm's weight and bias, and of every bias beside a weight, by ComfyUI's names."""
    draw, tensors = _Random(seed), {}
    for name, module in base_model.diffusion_model.named_modules():
        weight, bias = (getattr(module, part, None) for part in ("weight", "bias"))
        if weight is not None and weight.dim() == 1:
            tensors[f"diffusion_model.{name}.diff"] = draw(*weight.shape, size=0.3)
        if bias is not None and isinstance(bias, Tensor):
            tensors[f"diffusion_model.{name}.diff_b"] = draw(*bias.shape, size=0.3)
    return tensors


def merged(model, tensors: dict[str, Tensor]) -> nn.Module:
    """The network of `model`, a ModelPatcher of its own, with the file in its weights.

    In float32: ComfyUI computes what it adds in float16 on cards that have it.
    """
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    with mock.patch.object(comfy.model_management, "lora_compute_dtype", lambda device: torch.float32):
        patched.patch_model()
    return patched.model
