"""Trains a LoRA on a small SD 1.5 in the repository's own environment: python train_elsewhere.py FOLDER

The folder holds the base network in diffusers' names (unet.safetensors), its configuration (unet.json) and what to
predict (inputs.safetensors). Leaves the LoRA (run/) and what diffusers predicts with and without it (predictions).
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusion_blend.pipelines import load_base
from diffusion_blend.trainers.train import train
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trainers"))
import worlds

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1])


def base() -> str:
    """A pipeline around the network, saved."""
    network = UNet2DConditionModel(**json.loads((FOLDER / "unet.json").read_text()))
    network.load_state_dict(load_file(FOLDER / "unet.safetensors"), strict=True)
    pipe = worlds.sd15()
    pipe.register_modules(unet=network, text_encoder=worlds.text_encoder(width=network.config.cross_attention_dim))
    pipe.save_pretrained(FOLDER / "base")
    return str(FOLDER / "base")


@torch.no_grad()
def predictions(pipe) -> torch.Tensor:
    """eps of the inputs."""
    inputs = load_file(FOLDER / "inputs.safetensors")
    return pipe.unet(inputs["x"], inputs["timestep"], inputs["context"]).sample


config = worlds.settings(
    base(), FOLDER / "run", algorithm="draft", optimisation__learning_rate=0.02, sampling__cfg=1.0, lora__rank=3
)
lora = train(config)
pipe = load_base(config.base.path)
made = {"base": predictions(pipe)}
pipe.load_lora_weights(str(lora))
made["tuned"] = predictions(pipe)
save_file(made, FOLDER / "predictions.safetensors")
