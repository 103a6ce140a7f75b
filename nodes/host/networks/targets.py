"""The weights of a ComfyUI model that a LoRA may address, under every name that ComfyUI knows them by."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.lora
import torch

from ....blend_core import Target, TargetIndex
from ..private import names_of_stored


def target_index(base_model: torch.nn.Module) -> TargetIndex:
    """Everything a file may change in this model: the weights of layers, and all other parameters."""
    shapes = dict(_shapes(base_model))
    names = {key.removesuffix(".weight"): key for key in shapes}
    aliases, parameters = {}, {}
    for alias, place in [*names.items(), *comfy.lora.model_lora_keys_unet(base_model, {}).items()]:
        key, rows, swap = _read_place(place)
        if key in shapes:
            module, _, parameter = key.rpartition(".")
            target = Target(module, shapes[key], rows, swap, parameter)
            (aliases if parameter == "weight" else parameters)[alias] = target
    return TargetIndex(aliases, parameters, family=_family(base_model))


def _shapes(base_model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(key, shape) of every tensor of the network that its state dict holds, whatever way a layer stores it."""
    for name, module in base_model.named_modules():
        if name.partition(".")[0] != "diffusion_model":
            continue
        for parameter in sorted(names_of_stored(module)):
            if isinstance(tensor := getattr(module, parameter, None), torch.Tensor):
                yield f"{name}.{parameter}", tuple(tensor.shape)


_CALLED = {
    "SD15": "SD 1.5", "SD20": "SD 2", "SDXLRefiner": "SDXL refiner", "FluxSchnell": "Flux schnell", "Flux2": "Flux 2",
    "ZImage": "Z-Image", "QwenImage": "Qwen-Image", "WAN21_T2V": "Wan 2.1", "LTXV": "LTX-Video", "LTXAV": "LTX-2",
}  # fmt: skip


def _family(base_model: torch.nn.Module) -> str:
    """The architecture in words where its class is called otherwise, else as ComfyUI calls it (HunyuanVideo)."""
    name = type(base_model.model_config).__name__
    return _CALLED.get(name, name)


def _read_place(place) -> tuple[str, tuple[int, int] | None, bool]:
    """ComfyUI's three ways to name a target: a key, (key, slice), (key, slice, function of the weight)."""
    if isinstance(place, str):
        return place, None, False
    key, area, *function = place
    rows = None if area is None else (area[1], area[2])
    return key, rows, bool(function)  # the only function in ComfyUI's maps swaps a weight's halves (scale, shift)
