"""Writing a trained LoRA as a file that ComfyUI, diffusers and Load Reward LoRA read alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .model import STUDIO
from .rewards import ToyReward


def kohya_names(peft_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """kohya's spelling, `lora_unet_X.lora_down.weight`, with `.alpha` equal to the rank: scale 1 for every reader."""
    spelled = {}
    for key, value in peft_state.items():
        module, _, role = key.removeprefix("base_model.model.").rpartition(".lora_")
        name = "lora_unet_" + module.replace(".", "_")
        down = role.startswith("A")
        spelled[f"{name}.lora_{'down' if down else 'up'}.weight"] = value.half().contiguous()
        if down:
            spelled[f"{name}.alpha"] = torch.tensor(float(value.shape[0]))
    return spelled


def save_lora(peft_state: dict[str, Tensor], path: Path, *, reward: ToyReward, settings: dict, log: list[dict]) -> None:
    """Write the LoRA with the facts that the nodes and the report read back."""
    facts = {
        "format": "1",
        "rewards": json.dumps([{"name": reward.name, "weight": 1.0, "scale": reward.scale / reward.std}]),
        "kl_weight": settings["kl_weight"],
        "kl_form": "exact",
        "algorithm": "reward gradient on predicted x0",
        "transition": "ddim",
        "eta": settings["eta"],
        "sampling_steps": settings["steps"],
        "cfg": settings["cfg"],
        "base_model": "diffusion-blend toy studio",
        "base_sha256": sha256(STUDIO / "base" / "unet" / "diffusion_pytorch_model.safetensors"),
        "rank": settings["rank"],
        "step": settings["iterations"] * settings["updates"],
        "images_seen": settings["iterations"] * settings["prompts"],
        "seed": settings["seed"],
        "path_kl": log[-1]["path_kl"],
    }
    metadata = {f"diffusion_blend.{name}": str(value) for name, value in facts.items()}
    metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(settings["rank"])}
    save_file(kohya_names(peft_state), path, metadata | {"modelspec.title": reward.name})


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
