"""How trainers name the keys of a LoRA file: templates around a module's path, dotted or with underscores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from . import loras
from .families import Family

_A, _DOWN = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
_DOTTED = {
    "peft": ("base_model.model.{}", *_A),
    "peft state dict": ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
    "peft with an adapter's name": ("base_model.model.{}", "lora_A.learner.weight", "lora_B.learner.weight"),
    "diffusers, transformer": ("transformer.{}", *_A),
    "diffusers, UNet": ("unet.{}", *_A),
    "diffusers 0.22": ("unet.{}", "lora.down.weight", "lora.up.weight"),
    "linear layers": ("transformer.{}", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "no prefix": ("{}", *_A),
    "ComfyUI": ("diffusion_model.{}", *_A),
    "ComfyUI, up and down": ("diffusion_model.{}", *_DOWN),
    "wrapped": ("module.transformer.base_model.model._orig_mod.{}", *_A),
}
_FLAT = {
    "kohya": ("lora_unet_{}", *_DOWN),
    "VideoX-Fun": ("lora_unet__{}", *_DOWN),
    "OneTrainer": ("lora_transformer_{}", *_DOWN),
    "LyCORIS": ("lycoris_{}", *_DOWN),
}
_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}


def written(family: Family, model, folder: Path) -> Iterator[tuple[str, loras.RandomLoRA, Path]]:
    """(spelling, LoRA, its file) for every way to write a LoRA of the family: by ComfyUI's names and by diffusers'."""
    for names, layers in (("own names", family.own_layers(model)), ("diffusers' names", family.layers(model))):
        if names == "own names" or family.renames:
            lora = loras.random_lora(f"{family.kind}_{names[:3]}", layers, rank=1, alpha=1.0, seed=3)
            for spelling, tensors in _spelled(lora):
                label = f"{spelling}, {names}"
                yield label, lora, folder / loras.save(tensors, folder, f"{family.kind}/{label}.safetensors")
    attention = [layer for layer in family.layers(model) if layer.name.endswith(tuple(_PROJECTIONS))]
    if family.is_unet:
        lora = loras.random_lora(f"{family.kind}_processors", attention, rank=1, alpha=1.0, seed=4)
        for prefix in ("", "unet."):
            tensors = _of_processors(lora, prefix)
            yield (
                "attention processors",
                lora,
                folder / loras.save(tensors, folder, f"{family.kind}/{prefix}p.safetensors"),
            )


TOO_LARGE = ("MiniMax Music 3",)  # for a file of each spelling


def count(family: Family) -> int:
    """How many files `written` yields; none where they would be too large."""
    if family.name in TOO_LARGE:
        return 0
    return (len(_DOTTED) + len(_FLAT)) * (2 if family.renames else 1) + 2 * family.is_unet


def _spelled(lora: loras.RandomLoRA) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for spelling, (stem, down, up) in _DOTTED.items():
        yield spelling, loras.pairs(lora, f"{stem}.{down}", f"{stem}.{up}")
    for spelling, (stem, down, up) in _FLAT.items():
        pairs = loras.pairs(lora, "{}|" + down, "{}|" + up)
        yield spelling, {_flat(key, stem): tensor for key, tensor in pairs.items()}


def _flat(key: str, stem: str) -> str:
    name, role = key.split("|")
    return f"{stem.format(name.replace('.', '_'))}.{role}"


def _of_processors(lora: loras.RandomLoRA, prefix: str) -> Mapping[str, Tensor]:
    tensors = {}
    for layer, (down, up) in lora.factors.items():
        projection = next(end for end in _PROJECTIONS if layer.name.endswith(end))
        stem = f"{prefix}{layer.name.removesuffix(projection)}processor.{_PROJECTIONS[projection]}_lora"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors
