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
LORAS = ("sd_1_5_dpo_lora_v1-128dim", "spo-sd-v1-5_4k-p_10ep_lora_diffusers")
SD3_CHECKPOINT = "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
SD3_LORAS = ("SD3.5M-FlowGRPO-GenEval", "SD3.5M-FlowGRPO-Text", "SD3.5M-FlowGRPO-PickScore")
SDXL_CHECKPOINT = "sd_xl_base_1.0.safetensors"
SDXL_LORAS = ("spo_sdxl_10ep_4k-data_lora_diffusers", "sdxl-DPO-LoRA")
WAN_NETWORK, WAN_LORA = "wan2.2_fun_inpaint_{}_noise_14B_fp8_scaled", "Wan2.2-Fun-A14B-InP-{}-noise-{}"
WAN_AUTOENCODER, WAN_TEXT = "wan_2.1_vae.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """SD 1.5 with a tiny autoencoder and no text encoder, in fp16: 37 MB. seed: of the network's weights."""
    from . import networks

    _write_checkpoint(path, networks.unet(seed), latent_channels=4)


def write_sd3_checkpoint(path: Path) -> None:
    """The same for SD3: 9 MB."""
    from . import networks

    _write_checkpoint(path, networks.sd3(), latent_channels=16)


def write_sdxl(models: Path) -> None:
    """The same for SDXL's smallest relative, 211 MB, and its two LoRAs."""
    from . import loras, networks

    network = networks.sdxl()
    _write_checkpoint(models / "checkpoints" / SDXL_CHECKPOINT, network, latent_channels=4)
    for name, lora in zip(SDXL_LORAS, loras.three_loras(networks.load(network).model)[:2], strict=True):
        loras.write_kohya(replace(lora, label=name), models / "loras")


def write_wan(models: Path) -> None:
    """Wan 2.2's two networks with two LoRAs each, as their publisher writes them, and a tiny autoencoder: 6 MB.

    The file of the text encoder is there, and empty: a test puts prompts of its own in its place.
    """
    import comfy.ldm.wan.vae

    from . import loras, networks

    for seed, expert in enumerate(("high", "low")):
        network = networks.wan(seed, in_dim=36)
        _save(network, models / "diffusion_models" / f"{WAN_NETWORK.format(expert)}.safetensors")
        model, names = networks.load(network).model, [name for name in network if "attn" in name]
        layers = loras.layers_of(model, dict(zip(names, names, strict=True)))
        layers = [replace(layer, name=f".{layer.name}") for layer in layers]  # lora_unet__blocks: two underscores
        for number, reward in enumerate(("HPS2.1", "MPS")):
            lora = loras.random_lora(WAN_LORA.format(expert, reward), layers, rank=4, alpha=2.0, seed=2 * seed + number)
            loras.write_kohya(lora, models / "loras")
    sizes = {"dim": 8, "z_dim": 16, "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True]}
    autoencoder = comfy.ldm.wan.vae.WanVAE(**sizes, image_channels=3, conv_out_channels=3)
    _save(networks.filled(autoencoder), models / "vae" / WAN_AUTOENCODER)
    _save({}, models / "text_encoders" / WAN_TEXT)


def _save(tensors: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.float16).contiguous() for name, value in tensors.items()}, path)


def _write_checkpoint(path: Path, network: dict, latent_channels: int) -> None:
    import comfy.taesd.taesd

    from . import networks

    autoencoder = networks.filled(comfy.taesd.taesd.TAESD(latent_channels=latent_channels))
    tensors = {f"model.diffusion_model.{name}": value for name, value in network.items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in autoencoder.items()}
    _save(tensors, path)


def write_control_net(path: Path) -> None:
    """A ControlNet for that checkpoint."""
    from . import networks

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in networks.control_net(wide=True).state_dict().items()}
    save_file(tensors, path)


def write_picture(path: Path) -> None:
    """Two colours with an edge between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (64, 64), "navy")
    picture.paste("orange", (20, 20, 44, 44))
    picture.save(path)


def main(models: Path) -> None:
    """Write the checkpoints, their LoRAs, the ControlNet and the picture below `models`."""
    from . import host

    host.enter(host.workspaces()[0])
    from . import loras, networks

    write_checkpoint(models / "checkpoints" / CHECKPOINT)
    write_control_net(models / "controlnet" / CONTROL_NET)
    write_picture(models.parent / "input" / PICTURE)
    for name, lora in zip(LORAS, loras.three_loras(networks.load(networks.unet()).model)[:2], strict=True):
        loras.write_kohya(replace(lora, label=name), models / "loras")
    write_sdxl(models)
    write_wan(models)
    write_sd3_checkpoint(models / "checkpoints" / SD3_CHECKPOINT)
    for seed, name in enumerate(SD3_LORAS):
        _write_sd3_lora(name, seed, models / "loras")


def _write_sd3_lora(name: str, seed: int, folder: Path) -> None:
    """As peft writes it, in a file of its own: alpha is 2 times the rank, which the file does not say."""
    import comfy.utils

    from . import loras, networks

    model = networks.load(networks.sd3()).model
    layers = loras.layers_of(model, comfy.utils.mmdit_to_diffusers(model.model_config.unet_config))
    attention = [layer for layer in layers if ".attn." in layer.name]
    lora = loras.random_lora(name, attention, rank=4, alpha=8.0, seed=seed)
    names = ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
    loras.save(loras.pairs(lora, *names), folder, f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
