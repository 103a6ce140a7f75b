"""Base models: how each family encodes prompts, calls its network, decodes latents and names its LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ..blend_core.errors import BlendError
from ..pipelines import load_base, network_of
from .config import Config
from .transition import Step, check_noise, ddim_steps, flow_steps

Conditions = dict[str, Tensor]
"""What a network is told beside the latents: tensors of one row per image."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Family:
    """What the file's header and the LoRA's names need. spelling: kohya or diffusers, what ComfyUI reads of it."""

    name: str
    architecture: str  # ModelSpec's
    base_version: str  # kohya's ss_base_model_version
    spelling: str
    transition: str
    targets: tuple[str, ...]


FAMILIES = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion 1.x", "stable-diffusion-v1/lora", "sd_v1", "kohya", "ddim", ATTENTION
    ),
    "StableDiffusionXLPipeline": Family(
        "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "kohya", "ddim", ATTENTION
    ),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3",
        "stable-diffusion-v3-medium/lora",
        "sd3",
        "diffusers",
        "flow",
        (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ),
}


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
        factor = pipe.vae_scale_factor
        self.size = size or self.network.config.sample_size * factor
        if self.size % factor:
            raise BlendError(f"sampling.size is {self.size}, expected a multiple of {factor} pixels. Change it.")
        self.latent_shape = (self.network.config.in_channels, self.size // factor, self.size // factor)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def conditions(self, prompts: Sequence[str]) -> tuple[Conditions, Conditions]:
        """(of the prompts, of no prompt), by the pipeline's own encoder."""
        options = {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        if self.family.name != "Stable Diffusion 1.x":
            options |= {"prompt_2": None}
        if self.family.transition == "flow":
            options |= {"prompt_3": None}
        encoded = self.pipe.encode_prompt(list(prompts), **options)
        sides = [{"text": encoded[0]}, {"text": encoded[1]}]
        if len(encoded) > 2:
            sides = [side | {"pooled": pooled} for side, pooled in zip(sides, encoded[2:], strict=True)]
        return sides[0], sides[1]

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        """The network's prediction at x (rows, ...), in x's dtype."""
        given = x.to(next(self.network.parameters()).dtype)
        text = conditions["text"]
        if self.family.transition == "flow":
            clock = torch.full((len(x),), timestep, device=x.device)
            output = network(
                hidden_states=given, timestep=clock, encoder_hidden_states=text, pooled_projections=conditions["pooled"]
            )
        else:
            extra = {}
            if "pooled" in conditions:
                ids = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]], device=x.device)
                ids = ids.expand(len(x), -1).to(text.dtype)
                extra = {"added_cond_kwargs": {"text_embeds": conditions["pooled"], "time_ids": ids}}
            clock = torch.tensor(int(timestep), device=x.device)
            output = network(given, clock, encoder_hidden_states=text, **extra)
        return output[0].to(x.dtype) if isinstance(output, tuple) else output.sample.to(x.dtype)

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

    def steps(self, config: Config) -> list[Step]:
        """The chain that is trained. Raises BlendError where a step of it has no likelihood."""
        if self.family.transition == "flow":
            chain = flow_steps(self.pipe.scheduler, config.sampling.steps, config.sampling.noise_level)
        else:
            chain = ddim_steps(self.pipe.scheduler, config.sampling.steps, config.sampling.eta)
        check_noise(chain)
        return chain


def family_of(pipe: Any) -> Family:
    """Raises BlendError for a pipeline that the trainers do not know."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise BlendError(
            f"the base model is a {name}; trainers know {', '.join(FAMILIES)}. Choose a base of one of these families."
        )
    return FAMILIES[name]


def open_base(config: Config) -> Base:
    """The base model of a run. Raises BlendError for what cannot be opened or trained."""
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()  # one bar is enough: the run's
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
    digest = hashlib.sha256()
    with files[0].open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
