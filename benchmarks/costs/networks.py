"""Networks of Stable Diffusion 1.5's and XL's shape with random weights, as ComfyUI loads them from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from nodes import common_ksampler

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what reward LoRAs usually adapt


@dataclass(frozen=True)
class Shape:
    """An architecture: UNetModel's arguments, the side of its latents, and the width of its pooled prompt, if any.

    tokens: of a prompt.
    """

    config: Mapping
    latent: int
    pooled: int = 0
    tokens: int = 77

    @property
    def context(self) -> int:
        """The width of a prompt's tokens."""
        return self.config["context_dim"]

    def small(self) -> Shape:
        """The same depth, every level as wide as the first; short prompts on small latents."""
        narrow = {**self.config, "channel_mult": [1] * len(self.config["channel_mult"])}
        return replace(self, config=narrow, latent=8, tokens=16)


_COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_checkpoint": False,
}
SHAPES = {
    "SD 1.5": Shape(
        {
            **_COMMON,
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "num_heads": 8,
            "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        },
        latent=64,
    ),
    "SDXL": Shape(
        {
            **_COMMON,
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "num_head_channels": 64,
            "context_dim": 2048,
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        latent=128,
        pooled=1280,
    ),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How an image is made: Euler, one evaluation of the guided model per step."""

    steps: int
    cfg: float


@dataclass(frozen=True)
class Network:
    """One network and the prompts and latents it samples with.

    model: a ModelPatcher.  load: another with the same weights.  conditioning: (positive, negative).
    """

    model: object
    load: Callable[[], object]
    conditioning: tuple
    latent: Mapping
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.load_device

    @property
    def bytes(self) -> int:
        """What its weights take."""
        return self.model.model_size()

    def sample(self, sampling: SamplerSettings, model=None, conditioning=None) -> Tensor:
        """One image's latents from the stock KSampler, by the network itself unless told another model of it."""
        prompts, seed = conditioning or self.conditioning, 1
        asked = (sampling.steps, sampling.cfg, "euler", "normal", *prompts, dict(self.latent))
        with torch.inference_mode():
            (made,) = common_ksampler(model or self.model, seed, *asked)
        return made["samples"]

    def adapted(self) -> dict[str, nn.Module]:
        """The layers that the LoRAs adapt, by name."""
        layers = attention_layers(self.model.model.diffusion_model)
        return {f"diffusion_model.{name}": layer for name, layer in layers.items()}

    def lora(self, seed: int, rank: int) -> dict[str, Tensor]:
        """A random LoRA in float16, in ComfyUI's own spelling."""
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for name, module in self.adapted().items():
            width_out, width_in = module.weight.shape
            state[f"{name}.lora_down.weight"] = torch.randn(rank, width_in, generator=generator) / width_in**0.5
            state[f"{name}.lora_up.weight"] = torch.randn(width_out, rank, generator=generator) * 0.05
        return {name: value.half() for name, value in state.items()}


def build(shape: Shape, dtype: torch.dtype, latent: int) -> Network:
    """A random network of this shape, with latents of latent x latent."""
    state = _random_state(shape, dtype)

    def load():
        return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": dtype})

    generator = torch.Generator().manual_seed(1)
    extra = {"pooled_output": torch.randn(1, shape.pooled, generator=generator)} if shape.pooled else {}
    prompts = tuple([[torch.randn(1, shape.tokens, shape.context, generator=generator), dict(extra)]] for _ in range(2))
    return Network(load(), load, prompts, {"samples": torch.zeros(1, 4, latent, latent)}, dtype)


def unet(shape: Shape, dtype: torch.dtype) -> UNetModel:
    """The network without any weights."""
    return UNetModel(**shape.config, dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init)


def attention_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The attention projections of a network, by name."""
    return {name: module for name, module in network.named_modules() if name.endswith(ATTENTION)}


def _random_state(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights with which activations stay near 1; norms are the identity. Drawn on the GPU where there is one."""
    generator = torch.Generator(comfy.model_management.get_torch_device()).manual_seed(0)
    weights = unet(shape, dtype).state_dict()
    return {name: _random(name, value.shape, generator).to("cpu", dtype) for name, value in weights.items()}


def _random(name: str, size: torch.Size, generator: torch.Generator) -> Tensor:
    if len(size) > 1:
        return torch.randn(size, generator=generator, device=generator.device) / math.prod(size[1:]) ** 0.5
    return torch.ones(size) if name.endswith("weight") else torch.zeros(size)
