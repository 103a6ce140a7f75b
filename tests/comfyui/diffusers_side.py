"""A LoRA trained on a small UNet of SD 1.5's shape, and what diffusers predicts with it: run by diffusers' Python.

    python diffusers_side.py FOLDER     writes lora.safetensors (by the trainers' own code) and world.safetensors

No ComfyUI here, and no diffusers in ComfyUI's Python: test_trained_lora.py starts this file and reads what it wrote.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusion_blend.trainers.files import lora as export
from diffusion_blend.trainers.model.base import Base
from diffusion_blend.trainers.model.families import FAMILIES
from diffusion_blend.trainers.model.guidance import Guidance
from diffusion_blend.trainers.model.lora_policy import LoraPolicy
from diffusion_blend.trainers.settings.config import read_config
from safetensors.torch import save_file

TIMESTEP = 500
CONTEXT = 768


def main(folder: Path) -> None:
    """Train a few updates towards noise, so that every factor moves; save weights, LoRA, inputs and predictions."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,
    )
    base = Base.__new__(Base)
    base.pipe, base.family = types.SimpleNamespace(scheduler=scheduler), FAMILIES["StableDiffusionPipeline"]
    base.network, base.size, base.latent_shape = network.requires_grad_(False).eval(), 64, (4, 8, 8)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    policy = LoraPolicy(base, read_config(lora__rank=4, sampling__steps=10, sampling__cfg=1.0))
    text, x, target = torch.randn(1, 8, CONTEXT), torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8) * 3
    encoded = types.SimpleNamespace(guidance=Guidance({"text": text}, 1.0, sides=1))
    optimiser = torch.optim.Adam(policy.parameters().values(), 0.03)
    for _ in range(10):
        (policy.predictor(encoded)(x, 5) - target).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    timestep = torch.tensor(TIMESTEP)
    with torch.no_grad():
        tuned = network(x, timestep, encoder_hidden_states=text).sample
        network.disable_adapters()
        plain = network(x, timestep, encoder_hidden_states=text).sample
    a = scheduler.alphas_cumprod[TIMESTEP]
    denoised = {name: (x - (1 - a).sqrt() * eps) / a.sqrt() for name, eps in (("tuned", tuned), ("plain", plain))}
    tensors = export.lora_tensors(network, "kohya")
    facts = {"title": "test", "rank": 4, "base_model": "tiny", "step": 10, "seed": 0, "kl_weight": 0.25}
    export.save_lora(folder / "lora.safetensors", tensors, export.header(facts, base.family, tensors))
    world = {f"weights.{name}": value for name, value in weights.items()}
    save_file({**world, "x": x, "text": text, "sigma": ((1 - a) / a).sqrt(), **denoised}, folder / "world.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
