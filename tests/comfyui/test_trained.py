"""A LoRA that our trainers made on diffusers is the same basis in ComfyUI: every key, and the same prediction."""

import json
import os
import subprocess

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from safetensors.torch import load_file, save_file

from . import networks
from .host import REPOSITORY
from .reference import assert_differ, assert_equal

PYTHON = REPOSITORY / ".venv" / "bin" / "python"  # diffusers is not among ComfyUI's packages
SMALL = networks._UNET | {"transformer_depth_middle": 1}
IN_DIFFUSERS = {
    "sample_size": 8,
    "block_out_channels": [320],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "cross_attention_dim": networks.CONTEXT,
    "attention_head_dim": 8,
}


@pytest.fixture(scope="module")
def model():
    """A small SD 1.5 that both sides can build."""
    kind = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    network = kind(out_channels=4, transformer_depth_output=[1, 1], **SMALL, **networks._COMMON)
    return networks.load(networks.filled(network, seed=5))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """The folder that train_elsewhere.py leaves, and the inputs it was asked about."""
    if not PYTHON.is_file():
        pytest.skip("TRAINED LORAS ARE NOT TESTED in ComfyUI: the repository's .venv is missing; `make test` makes it")
    folder = tmp_path_factory.mktemp("trained")
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    state = {name: value.contiguous() for name, value in model.model.diffusion_model.state_dict().items()}
    in_diffusers = {name: state.pop(native) for name, native in names.items() if native in state}
    assert not state
    save_file(in_diffusers, folder / "unet.safetensors")
    (folder / "unet.json").write_text(json.dumps(IN_DIFFUSERS))
    generator = torch.Generator().manual_seed(6)
    inputs = {
        "x": torch.randn(2, 4, 8, 8, generator=generator),
        "context": torch.randn(1, 8, networks.CONTEXT, generator=generator).expand(2, -1, -1).contiguous(),
        "timestep": torch.tensor([601, 31]),
    }
    save_file(inputs, folder / "inputs.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "/tmp/w5env",
    }
    script = REPOSITORY / "tests" / "comfyui" / "train_elsewhere.py"
    done = subprocess.run([PYTHON, script, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, inputs


def test_comfyui_and_diffusers_predict_the_same_with_a_trained_lora(graph, nodes, model, trained, lora_folder):
    folder, inputs = trained
    (file,) = (folder / "run").glob("*.safetensors")
    (lora_folder / "trained.safetensors").write_bytes(file.read_bytes())
    (lora,) = nodes["LoadRewardLoRA"].execute(lora_name="trained.safetensors", label="", kl_weight=0, scale=0).result
    assert lora.kl_weight == 0.01 and lora.adapter.rewards == ("brightness",)
    assert lora.adapter.metadata["diffusion_blend.algorithm"] == "draft"
    blend = nodes["BlendWeights"].execute(loras={"lora_0": lora}, weights="1", normalise=True).result[0]
    applied = nodes["ApplyBlend"].execute(model=model, blend=blend, evaluation="exact", execution="auto", seed=0)
    modules = len([key for key in load_file(file) if key.endswith("lora_down.weight")])
    assert f"{modules} of {modules} modules" in "".join(applied.ui.as_dict()["text"])
    expected = load_file(folder / "predictions.safetensors")
    assert_differ(expected["tuned"], expected["base"])
    assert_equal(predicted(model, inputs), expected["base"])
    assert_equal(predicted(applied.result[0], inputs), expected["tuned"])


def predicted(model, inputs):
    """eps at the inputs, (2, ...): (x - denoised) / sigma, from a sampler that asks for one prediction."""
    sigmas, parts = model.model.model_sampling.sigmas, []
    for x, timestep in zip(inputs["x"].split(1), inputs["timestep"].tolist(), strict=True):
        sigma = sigmas[timestep]
        x = x * (1 + sigma**2) ** 0.5  # ComfyUI's noise adds to x0, diffusers' keeps the variance

        def ask(model, _, sigmas, extra_args, callback=None, disable=None, x=x):
            return (x - model(x, sigmas[:1], **extra_args)) / sigmas[0]

        prompt = [[inputs["context"][:1], {}]]
        sampler, levels = comfy.samplers.KSAMPLER(ask), torch.stack([sigma, torch.zeros(())])
        latent = {"samples": torch.zeros_like(x)}
        result = SamplerCustom.execute(model, False, 0, 1.0, prompt, prompt, sampler, levels, latent).result[0]
        parts.append(model.model.process_latent_in(result["samples"]))  # undoes the scaling of finished latents
    return torch.cat(parts)
