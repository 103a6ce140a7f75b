"""Random LoRAs: written to files in the spellings of several trainers, and merged into a network for reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.utils
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One weight by both names: `name` as diffusers has it, `module` as ComfyUI does.

    rows: (offset, length), where ComfyUI keeps several of diffusers' weights in one.  reorder: what ComfyUI does with
    a diffusers weight before it adds it (final layers have scale and shift the other way round).
    """

    name: str
    module: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    reorder: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class RandomLoRA:
    """Factors (down, up) per layer, and alpha; what is added to a weight is alpha / rank * up @ down."""

    label: str
    factors: dict[Layer, tuple[Tensor, Tensor]]
    rank: int
    alpha: float
    file: str = ""

    def deltas(self) -> dict[str, dict[tuple[int, int], Tensor]]:
        """What is added to each weight, by ComfyUI's name of the module and its rows (offset, length)."""
        differences: dict[str, dict[tuple[int, int], Tensor]] = {}
        for layer, (down, up) in self.factors.items():
            delta = (up @ down.flatten(1)).view(len(up), *layer.shape[1:]) * (self.alpha / self.rank)
            rows = layer.rows or (0, layer.shape[0])
            differences.setdefault(layer.module, {})[rows] = layer.reorder(delta) if layer.reorder else delta
        return differences

    def merge_into(self, base_model: nn.Module, strength: float = 1.0) -> nn.Module:
        """Add this LoRA, times `strength`, to the weights of `base_model`, which is returned."""
        for module, deltas in self.deltas().items():
            weight = base_model.diffusion_model.get_submodule(module).weight.data
            for (offset, length), delta in deltas.items():
                weight[offset : offset + length] += strength * delta
        return base_model


def layers_of(base_model: nn.Module, diffusers_names: dict) -> list[Layer]:
    """The linear and convolution weights of a network, each once. diffusers_names: one of comfy.utils' maps."""
    modules = dict(base_model.diffusion_model.named_modules())
    layers: list[Layer] = []
    for name, place in diffusers_names.items():
        key, area, *reorder = (place, None) if isinstance(place, str) else place
        weight = getattr(modules.get(key.removesuffix(".weight")), "weight", None)
        if not name.endswith(".weight") or weight is None or weight.dim() < 2:
            continue
        layer = Layer(
            name.removesuffix(".weight"),
            key.removesuffix(".weight"),
            (area[2], *weight.shape[1:]) if area else tuple(weight.shape),
            (area[1], area[2]) if area else None,
            reorder[0] if reorder else None,
        )
        if not any(other.module == layer.module and other.rows in (None, layer.rows) for other in layers):
            layers.append(layer)
    fused = {layer.module for layer in layers if layer.rows}
    distinct = (layer for layer in layers if layer.rows or layer.module not in fused)
    # Some of comfy.utils' maps are made of sets: without an order of ours, a seed would not fix the factors.
    return sorted(distinct, key=lambda layer: (layer.module, layer.rows or (0, 0)))


def random_lora(label: str, layers: Iterable[Layer], rank: int, alpha: float, seed: int) -> RandomLoRA:
    """A LoRA whose delta is a good part of a weight of `networks.filled`, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in layers:
        fan_in = math.prod(layer.shape[1:])
        down = torch.randn((rank, *layer.shape[1:]), generator=generator) * 0.3 / fan_in**0.5
        factors[layer] = (down, torch.randn((layer.shape[0], rank), generator=generator))
    return RandomLoRA(label, factors, rank, alpha)


def three_loras(base_model: nn.Module) -> list[RandomLoRA]:
    """Three LoRAs of different rank, coverage and alpha for a UNet; the last one's alpha is its rank."""
    layers = layers_of(base_model, comfy.utils.unet_to_diffusers(base_model.model_config.unet_config))
    linear = [layer for layer in layers if len(layer.shape) == 2]
    attention = [layer for layer in linear if ".attn" in layer.name]
    assert len(attention) < len(linear) < len(layers)
    return [
        random_lora("everything", layers, rank=4, alpha=2.0, seed=1),
        random_lora("attentive", attention, rank=3, alpha=6.0, seed=2),
        random_lora("linear", linear, rank=5, alpha=5.0, seed=3),
    ]


def write_three(base_model: nn.Module, folder: Path) -> list[tuple[RandomLoRA, str]]:
    """`three_loras` in three spellings, with the names of their files."""
    writers = (write_kohya, write_peft, write_diffusers)
    return [(lora, write(lora, folder)) for lora, write in zip(three_loras(base_model), writers, strict=True)]


def write_kohya(lora: RandomLoRA, folder: Path) -> str:
    """sd-scripts: flat names, an alpha beside every pair."""
    tensors = {}
    for layer, (down, up) in lora.factors.items():
        stem = "lora_unet_" + layer.name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.lora_up.weight"] = _as_convolution(up, down)
        tensors[f"{stem}.alpha"] = torch.tensor(lora.alpha)
    return save(tensors, folder, f"{lora.label}.safetensors")


def write_peft(lora: RandomLoRA, folder: Path) -> str:
    """peft: a folder with the factors and, beside them, the alpha."""
    tensors = pairs(lora, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
    name = save(tensors, folder, f"{lora.label}/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha}
    (folder / lora.label / "adapter_config.json").write_text(json.dumps(config))
    return name


def write_diffusers(lora: RandomLoRA, folder: Path) -> str:
    """diffusers of 2023: no alpha, which means that it equals the rank."""
    assert lora.alpha == lora.rank
    tensors = pairs(lora, "unet.{}.lora.down.weight", "unet.{}.lora.up.weight")
    return save(tensors, folder, f"{lora.label}.safetensors")


def write_transformer(lora: RandomLoRA, folder: Path) -> str:
    """diffusers for transformers, without an alpha."""
    assert lora.alpha == lora.rank
    tensors = pairs(lora, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    return save(tensors, folder, f"{lora.label}.safetensors")


def write_native(lora: RandomLoRA, folder: Path) -> str:
    """ComfyUI's own names, without an alpha."""
    return save(native_keys(lora), folder, f"{lora.label}.safetensors")


def native_keys(lora: RandomLoRA) -> dict[str, Tensor]:
    """The tensors of a LoRA by ComfyUI's own names, for whole weights."""
    assert lora.alpha == lora.rank
    native = {replace(layer, name=layer.module): factors for layer, factors in lora.factors.items()}
    native_lora = replace(lora, factors=native)
    return pairs(native_lora, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")


def pairs(lora: RandomLoRA, down_name: str, up_name: str) -> dict[str, Tensor]:
    """The tensors of a LoRA, its layers' names put into two templates."""
    tensors = {}
    for layer, (down, up) in lora.factors.items():
        tensors[down_name.format(layer.name)] = down
        tensors[up_name.format(layer.name)] = _as_convolution(up, down)
    return tensors


def _as_convolution(up: Tensor, down: Tensor) -> Tensor:
    return up.view(*up.shape, *[1] * (down.dim() - 2))


def save(tensors: dict[str, Tensor], folder: Path, name: str) -> str:
    """A safetensors file in `folder`; returns its name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return name
