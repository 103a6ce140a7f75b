"""A LoRA written by the trainers gives ComfyUI the prediction that it gives diffusers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file

from nodes import LoraLoaderModelOnly

from . import host, networks
from .reference import assert_differ, assert_equal

SCALE = 0.18215  # ComfyUI's latents of SD 1.5 are divided by it on their way out


@pytest.fixture(scope="module")
def world(tmp_path_factory, lora_folder):
    """What diffusers_side.py wrote; its LoRA is in ComfyUI's folder as trained.safetensors."""
    named = os.environ.get("DIFFUSERS_PYTHON")
    python = Path(named) if named else host.REPOSITORY / ".venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no Python with diffusers at {python}: run make test, or set DIFFUSERS_PYTHON")
    folder = tmp_path_factory.mktemp("diffusers")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"PYTHONPATH": path} if (path := os.environ.get("DIFFUSERS_PYTHONPATH")) else {}
    script = Path(__file__).with_name("diffusers_side.py")
    subprocess.run([str(python), str(script), str(folder)], env=clean, check=True, timeout=300)
    shutil.copy(folder / "lora.safetensors", Path(lora_folder) / "trained.safetensors")
    return load_file(folder / "world.safetensors")


@pytest.fixture(scope="module")
def model(world):
    """The network with diffusers' weights, under the names that ComfyUI has for them."""
    shape = {**networks._UNET, "transformer_depth_middle": 1, "transformer_depth_output": [1, 1]}
    unet_model = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    state = networks.filled(unet_model(out_channels=4, **shape, **networks._COMMON))
    names = comfy.utils.unet_to_diffusers(networks.load(state).model.model_config.unet_config)
    weights = {name.removeprefix("weights."): value for name, value in world.items() if name.startswith("weights.")}
    assert set(weights) <= set(names)
    for name, value in weights.items():
        assert state[names[name]].numel() == value.numel()
        state[names[name]] = value.reshape(state[names[name]].shape)
    assert len({names[name] for name in weights}) == len(state)  # no weight is left random
    return networks.load(state)


def denoised(model, world):
    """What the model makes of x at that sigma: one Euler step to 0."""
    sigmas = torch.tensor([world["sigma"], 0.0])
    x = world["x"] / (1 / (world["sigma"] ** 2 + 1)).sqrt()  # ComfyUI's x is x0 + sigma * noise
    prompt = [[world["text"], {}]]
    sampler = comfy.samplers.sampler_object("euler")
    latent = torch.zeros_like(x)
    noise = x / world["sigma"]
    return comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, prompt, prompt, latent) * SCALE


def test_the_base_agrees_with_diffusers(model, world):
    assert_equal(denoised(model, world), world["plain"])


def test_a_trained_lora_gives_diffusers_prediction_in_both_of_comfyuis_ways(model, world, graph):
    assert_differ(world["tuned"], world["plain"])
    blend = graph.blend(["trained.safetensors"])
    assert_equal(denoised(graph.applied(model, blend), world), world["tuned"])
    (stock,) = LoraLoaderModelOnly().load_lora_model_only(model, "trained.safetensors", 1.0)
    assert_equal(denoised(stock, world), world["tuned"])


def test_its_keys_and_its_kl_weight_are_all_read(model, world, graph, nodes):
    import comfy.lora
    import folder_paths

    file = folder_paths.get_full_path("loras", "trained.safetensors")
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(comfy.utils.load_torch_file(file), keys)
    modules = {name.partition(".")[0] for name in load_file(file)}
    assert len(loaded) == len(modules) == 4 * 8  # four attention blocks of eight projections
    (lora,) = (
        nodes["LoadRewardLoRA"].execute(lora_name="trained.safetensors", label="", kl_weight=0.0, scale=0.0).result
    )
    assert lora.kl_weight == 0.25
