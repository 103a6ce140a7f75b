"""Model families: how each encodes prompts, calls its network, lays out its latents and names its LoRA.

Latents are images (n, channels, side, side) everywhere outside a family; one that packs them for its network does so in
`call`. Packing only reorders numbers, so likelihoods and KL are the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blend_core.errors import BlendError
from ...pipelines import network_of
from ..settings.config import SamplingSettings
from .chain import Step, ddim_steps, flow_steps

Conditions = dict[str, Tensor]
"""What a network takes next to the latents: tensors of one row per image."""

Sides = tuple[Conditions, Conditions | None]
"""(of the prompts, of no prompt); None where the prediction has no unconditional branch."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class Family:
    """What the file's header and the LoRA's names need. spelling: kohya or diffusers, what ComfyUI reads of it."""

    name: str
    architecture: str  # ModelSpec's
    base_version: str  # kohya's ss_base_model_version
    spelling: str
    transition: str
    targets: tuple[str, ...]

    def conditions(self, pipe: Any, prompts: Sequence[str], size: int, cfg: float) -> Sides:
        """What the network is told, by the pipeline's own encoder. size: pixels of each side."""
        raise NotImplementedError

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        """The network's prediction at x (rows, channels, side, side), in the network's dtype, shaped as x."""
        raise NotImplementedError

    def steps(self, scheduler: Any, sampling: SamplingSettings, tokens: int) -> list[Step]:
        """The chain. tokens: patches of one image, on which the schedules of some models depend."""
        raise NotImplementedError

    def own_side(self, pipe: Any, network: nn.Module) -> int:
        """Latent pixels of each side at the size the model was made for."""
        return network.config.sample_size

    def channels(self, network: nn.Module) -> int:
        """Of the latents."""
        return network.config.in_channels

    def patch(self, network: nn.Module) -> int:
        """Latent pixels of each side that a size must be a multiple of."""
        return network.config.get("patch_size") or 1

    def distilled(self, network: nn.Module) -> bool:
        """Whether guidance is an input of the network, which then has no unconditional branch."""
        return False


class StableDiffusion(Family):
    """UNets that predict eps or v and are sampled by DDIM."""

    def conditions(self, pipe: Any, prompts: Sequence[str], size: int, cfg: float) -> Sides:
        return _both_sides(pipe, prompts, cfg)

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        clock = torch.tensor(int(timestep), device=x.device)
        extra = {}
        if "time_ids" in conditions:
            extra["added_cond_kwargs"] = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
        return network(x, clock, encoder_hidden_states=conditions["text"], **extra)[0]

    def steps(self, scheduler: Any, sampling: SamplingSettings, tokens: int) -> list[Step]:
        return ddim_steps(scheduler, sampling.steps, sampling.eta)


class StableDiffusionXL(StableDiffusion):
    """Two text encoders; the network is also told the image's size and cut."""

    def conditions(self, pipe: Any, prompts: Sequence[str], size: int, cfg: float) -> Sides:
        prompted, empty = _both_sides(pipe, prompts, cfg, "prompt_2")
        text = prompted["text"]
        ids = {"time_ids": torch.tensor([[size, size, 0, 0, size, size]] * len(text)).to(text)}
        return prompted | ids, None if empty is None else empty | ids


class StableDiffusion3(Family):
    """A flow transformer over image and text tokens."""

    def conditions(self, pipe: Any, prompts: Sequence[str], size: int, cfg: float) -> Sides:
        return _both_sides(pipe, prompts, cfg, "prompt_2", "prompt_3")

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        return network(
            hidden_states=x,
            timestep=torch.full((len(x),), timestep, device=x.device),
            encoder_hidden_states=conditions["text"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]

    def steps(self, scheduler: Any, sampling: SamplingSettings, tokens: int) -> list[Step]:
        dynamic = {"mu": time_shift(scheduler, tokens)} if scheduler.config.get("use_dynamic_shifting") else {}
        return flow_steps(scheduler, sampling.steps, sampling.noise_level, **dynamic)


class Flux(Family):
    """A flow transformer that sees latents as 2 x 2 patches and, where it was distilled, guidance as a number.

    Without that input (schnell) guidance extrapolates from the empty prompt, as diffusers' true_cfg_scale does.
    """

    def conditions(self, pipe: Any, prompts: Sequence[str], size: int, cfg: float) -> Sides:
        def conditions_of(texts: Sequence[str]) -> Conditions:
            text, pooled, _ = pipe.encode_prompt(list(texts), None, device=network_of(pipe).device)
            return {"text": text, "pooled": pooled}

        if self.distilled(pipe.transformer):
            guidance = torch.full((len(prompts),), cfg, device=network_of(pipe).device)
            return conditions_of(prompts) | {"guidance": guidance}, None
        return conditions_of(prompts), None if cfg == 1 else conditions_of([""] * len(prompts))

    def call(self, network: nn.Module, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        side = x.shape[-1] // 2
        rows, columns = torch.meshgrid(*[torch.arange(side, device=x.device)] * 2, indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        text = conditions["text"]
        clock = torch.full((len(x),), timestep, device=x.device).to(x.dtype) / 1000  # rounded as the pipeline's
        packed = network(
            hidden_states=F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
            timestep=clock,
            guidance=conditions.get("guidance"),
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=text.dtype),
            img_ids=places.to(text.dtype),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(packed.transpose(1, 2).unflatten(2, (side, side)), 2)

    def steps(self, scheduler: Any, sampling: SamplingSettings, tokens: int) -> list[Step]:
        levels = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
        return flow_steps(
            scheduler, sampling.steps, sampling.noise_level, sigmas=levels, mu=time_shift(scheduler, tokens)
        )

    def own_side(self, pipe: Any, network: nn.Module) -> int:
        return pipe.default_sample_size

    def channels(self, network: nn.Module) -> int:
        return network.config.in_channels // 4

    def patch(self, network: nn.Module) -> int:
        return 2

    def distilled(self, network: nn.Module) -> bool:
        return bool(network.config.guidance_embeds)


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusion(
        "Stable Diffusion 1.x", "stable-diffusion-v1/lora", "sd_v1", "kohya", "ddim", ATTENTION
    ),
    "StableDiffusionXLPipeline": StableDiffusionXL(
        "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "kohya", "ddim", ATTENTION
    ),
    "StableDiffusion3Pipeline": StableDiffusion3(
        "Stable Diffusion 3", "stable-diffusion-v3-medium/lora", "sd3", "diffusers", "flow", JOINT_ATTENTION
    ),
    "FluxPipeline": Flux("Flux", "flux-1-dev/lora", "flux1", "diffusers", "flow", JOINT_ATTENTION),
}


def family_of(pipe: Any) -> Family:
    """The pipeline's family. Raises BlendError for one that the trainers do not know."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise BlendError(
            f"the base model is a {name}; trainers know {', '.join(FAMILIES)}. Choose a base of one of these families."
        )
    return FAMILIES[name]


def time_shift(scheduler: Any, tokens: int) -> float:
    """The schedule's mu for images of so many tokens, on the line that the scheduler's configuration gives two of."""
    few, many = scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len
    low, high = scheduler.config.base_shift, scheduler.config.max_shift
    slope = (high - low) / (many - few)
    return tokens * slope + (low - slope * few)


def _both_sides(pipe: Any, prompts: Sequence[str], cfg: float, *others: str) -> Sides:
    """By an encoder that answers text, text of no prompt, and pooled likewise. others: its further prompts."""
    encoded = pipe.encode_prompt(
        list(prompts),
        device=network_of(pipe).device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=cfg != 1,
        **dict.fromkeys(others),
    )
    names = ("text", "pooled")[: len(encoded) // 2]
    prompted, empty = (dict(zip(names, encoded[side::2], strict=True)) for side in (0, 1))
    return prompted, None if cfg == 1 else empty
