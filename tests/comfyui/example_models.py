"""Tiny files in place of the models that the example workflows name: `python example_models.py FOLDER`.

Runs in ComfyUI's own Python.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
CONTROL_NET = "control_v11p_sd15_canny_fp16.safetensors"
PICTURE = "example.png"  # ComfyUI's own, in its input folder
LORAS = ("sd15_reward_alignment", "sd15_reward_aesthetic", "sd15_reward_compressibility")


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """SD 1.5 with a tiny autoencoder and no text encoder, in fp16: 37 MB. seed: of the network's weights."""
    import comfy.taesd.taesd

    from . import networks

    autoencoder = networks.filled(comfy.taesd.taesd.TAESD(latent_channels=4))
    tensors = {f"model.diffusion_model.{name}": value for name, value in networks.unet(seed).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in autoencoder.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.float16).contiguous() for name, value in tensors.items()}, path)


def write_control_net(path: Path) -> None:
    """A ControlNet for that checkpoint."""
    from . import networks

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in networks.control_net().state_dict().items()}
    save_file(tensors, path)


def write_picture(path: Path) -> None:
    """Two colours with an edge between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (64, 64), "navy")
    picture.paste("orange", (20, 20, 44, 44))
    picture.save(path)


def main(models: Path) -> None:
    """Write the checkpoint and the three LoRAs below `models`, and the names of what is only listed."""
    from . import host

    host.enter(host.workspaces()[0])
    from . import loras, networks

    write_checkpoint(models / "checkpoints" / CHECKPOINT)
    write_control_net(models / "controlnet" / CONTROL_NET)
    write_picture(models.parent / "input" / PICTURE)
    for name, lora in zip(LORAS, loras.three_loras(networks.load(networks.unet()).model), strict=True):
        loras.write_kohya(replace(lora, label=name), models / "loras")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
