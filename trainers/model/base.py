"""The base model of a run: its parts, its chain, its latents. What differs between families is in families.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...blend_core.adapters.files import sha256
from ...blend_core.errors import BlendError
from ...pipelines import load_base, network_of
from ...pipelines.loading import hide_loading_bars
from ..settings.config import Config, SamplingSettings
from .chain import Step, check_noise
from .families import Conditions, Sides, family_of
from .guidance import Guidance


class Base:
    """A pipeline with its parts in the trainer's hands. Frozen; the LoRA is added by the policy."""

    def __init__(self, pipe: Any, size: int = 0):
        """size: pixels of each side; 0: the model's own. Raises BlendError for a family without a trainer."""
        self.pipe = pipe
        self.family = family_of(pipe)
        self.network: nn.Module = network_of(pipe).requires_grad_(False).eval()
        pipe.vae.to(torch.float32)  # half precision overflows in some decoders
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        factor, patch = pipe.vae_scale_factor, self.family.patch(self.network)
        self.size = size or self.family.own_side(pipe, self.network) * factor
        if self.size % (factor * patch):
            raise BlendError(
                f"sampling.size is {self.size}, expected a multiple of {factor * patch} pixels. Change it."
            )
        self.latent_shape = (self.family.channels(self.network), self.size // factor, self.size // factor)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the network, which then has no unconditional branch."""
        return self.family.distilled(self.network)

    @torch.no_grad()
    def conditions(self, prompts: Sequence[str], cfg: float) -> Sides:
        """(of the prompts, of no prompt), by the pipeline's own encoder; the latter None where cfg needs none."""
        return self.family.conditions(self.pipe, prompts, self.size, cfg)

    def guidance(self, prompts: Sequence[str], cfg: float) -> Guidance:
        """What guided calls for these prompts need."""
        prompted, empty = self.conditions(prompts, cfg)
        if empty is None:
            return Guidance(prompted, cfg, 1)
        return Guidance({name: torch.cat([empty[name], prompted[name]]) for name in prompted}, cfg, 2)

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        """The network's prediction at x (rows, ...), in x's dtype."""
        inputs = x.to(next(self.network.parameters()).dtype)
        return self.family.call(network, inputs, timestep, conditions).to(x.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, size, size) in [0, 1], with gradient where latents have one."""
        config = self.pipe.vae.config
        latents = latents.to(torch.float32) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return (self.pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of images (n, 3, h, w) in [0, 1]."""
        config = self.pipe.vae.config
        coded = self.pipe.vae.encode(images.to(self.device, torch.float32) * 2 - 1).latent_dist.mean
        return (coded - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def chain(self, sampling: SamplingSettings) -> list[Step]:
        """The sampler's steps, deterministic ones too."""
        patches = self.latent_shape[-1] // self.family.patch(self.network)
        return self.family.steps(self.pipe.scheduler, sampling, patches**2)

    def steps(self, config: Config) -> list[Step]:
        """The chain that is trained. Raises BlendError where a step of it has no likelihood and needs one."""
        chain = self.chain(config.sampling)
        if config.algorithm != "distil":
            check_noise(chain)
        return chain


def open_base(config: Config) -> Base:
    """The base model of a run. Raises BlendError for what cannot be opened or trained."""
    hide_loading_bars()  # one bar is enough: the run's
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.optimisation.precision]
    return Base(load_base(config.base.path, config.base.config or None, dtype), config.sampling.size)


def base_sha256(config: Config) -> str:
    """SHA-256 of the file that holds the base's network, or an empty text where there is no single local one."""
    path = Path(config.base.path).expanduser()
    names = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "transformer")]
    files = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    if not files and not path.exists():
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(config.base.path, name) for name in names]
        files = [Path(file) for file in cached if isinstance(file, str)]
    if not files:
        return ""
    return sha256(files[0])
