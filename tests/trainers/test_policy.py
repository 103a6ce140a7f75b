"""The policy on tiny networks of every family: the LoRA off is the base, its file is its delta."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusion_blend.blend_core import read_adapter, resolve
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.pipelines import network_of, target_index
from diffusion_blend.trainers.files import lora as export
from diffusion_blend.trainers.model.base import Base
from diffusion_blend.trainers.model.families import JOINT_ATTENTION
from diffusion_blend.trainers.model.lora_policy import LoraPolicy
from diffusion_blend.trainers.model.policy import ImagePolicy, Policy
from diffusion_blend.trainers.settings.config import read_config
from peft.utils import get_peft_model_state_dict

from .chain import ChainPolicy, ddim_chain
from .worlds import FAMILIES, PROMPTS, settings


@pytest.fixture(params=FAMILIES)
def policy(request, tmp_path):
    base = Base(FAMILIES[request.param]())
    return LoraPolicy(base, settings("unused", tmp_path / "run"))


def noise(policy, count=2):
    return policy.noise([torch.Generator().manual_seed(i) for i in range(count)])()


def stir(policy, size=0.3):
    """A LoRA that does something."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


def test_objectives_get_all_that_they_ask_of_a_policy(policy):
    assert isinstance(policy, ImagePolicy) and isinstance(ChainPolicy(ddim_chain()), Policy)


def test_a_fresh_lora_is_the_base_and_a_trained_one_switches_off_bit_for_bit(policy):
    encoded, x = policy.encode(PROMPTS[:2]), noise(policy)
    with torch.no_grad():
        policy.unwrapped.disable_adapters()
        base = policy.predictor(encoded)(x, 1)
        policy.unwrapped.enable_adapters()
        assert torch.equal(policy.predictor(encoded)(x, 1), base)
        stir(policy)
        tuned = policy.predictor(encoded)(x, 1)
        assert not torch.allclose(tuned, base)
        assert torch.equal(policy.reference_predictor(encoded)(x, 1), base)
        assert torch.equal(policy.predictor(encoded)(x, 1), tuned)


def test_the_lora_comes_back_after_an_exception_and_keeps_its_gradients(policy):
    encoded, x = policy.encode(PROMPTS[:2]), noise(policy)
    stir(policy)
    before = policy.predictor(encoded)(x, 0)
    with pytest.raises(ZeroDivisionError), policy.reference():
        raise ZeroDivisionError
    after = policy.predictor(encoded)(x, 0)
    assert torch.equal(before, after)
    after.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters().values())
    assert all(p.dtype == torch.float32 for p in policy.parameters().values())


def test_guidance_extrapolates_from_the_prediction_of_no_prompt(policy):
    """cfg 1 is the prompted prediction alone; a distilled network has no such branch and takes cfg as a number."""
    encoded, x, cfg = policy.encode(PROMPTS[:2]), noise(policy), policy.cfg
    with torch.no_grad():
        guided = policy.predictor(encoded)(x, 0)
        policy.cfg = 1.0
        prompted = policy.predictor(policy.encode(PROMPTS[:2]))(x, 0)
        _, unprompted = policy.base.conditions(PROMPTS[:2], cfg)
        if policy.base.distilled:
            assert unprompted is None and len(encoded.guidance.conditions["text"]) == 2
            assert not torch.allclose(guided, prompted)
            return
        empty = policy.base.call(policy.network, x, policy.steps[0].timestep, unprompted)
    torch.testing.assert_close(guided, empty + cfg * (prompted - empty), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("kind", FAMILIES)
def test_our_sampler_is_the_pipelines(kind, size, tmp_path):
    """Without noise our chain ends in the images of diffusers' own call: nothing is trained on another sampler."""
    pipe = FAMILIES[kind]()
    pipe.set_progress_bar_config(disable=True)
    base = Base(pipe, size)
    policy = LoraPolicy(base, settings("unused", tmp_path / "run"))
    silent = replace(settings("unused", tmp_path / "run").sampling, eta=0.0, noise_level=0.0)
    policy.steps = base.family.steps(pipe.scheduler, silent, (base.latent_shape[-1] // 2) ** 2)
    x = noise(policy)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "height": size, "width": size, "output_type": "pt"}
    if kind == "schnell":
        options |= {"negative_prompt": ["", ""], "true_cfg_scale": 2.0}
    latents = pipe._pack_latents(x, *x.shape) if kind in ("flux", "schnell") else x
    theirs = pipe(PROMPTS[:2], latents=latents, **options).images
    predict = policy.predictor(policy.encode(PROMPTS[:2]))
    with torch.no_grad():
        for k, step in enumerate(policy.steps):
            x = step.mean(x, predict(x, k))
        torch.testing.assert_close(policy.decode(x), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_schedule_follows_the_size_as_the_pipelines_does(kind):
    pipe = FAMILIES[kind]()
    pipe.set_progress_bar_config(disable=True)
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**dynamic)
    base = Base(pipe, 16)
    pipe("a", num_inference_steps=5, height=16, width=16, output_type="latent")
    theirs = pipe.scheduler.timesteps.tolist()
    ours = [step.timestep for step in base.steps(read_config(sampling__steps=5))]
    larger = [step.timestep for step in Base(pipe, 32).steps(read_config(sampling__steps=5))]
    assert ours == theirs and larger[1:-1] != ours[1:-1]


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_the_file_moves_diffusers_own_pipeline_as_it_moved_the_policy(kind, tmp_path):
    policy = LoraPolicy(Base(FAMILIES[kind]()), settings("unused", tmp_path / "run"))
    stir(policy)
    encoded, x = policy.encode(PROMPTS[:2]), noise(policy)
    tensors = export.lora_tensors(policy.unwrapped, policy.base.family.spelling)
    export.save_lora(tmp_path / "lora.safetensors", tensors, {})
    pipe = FAMILIES[kind]()
    other = LoraPolicy.__new__(LoraPolicy)
    other.__dict__ |= policy.__dict__ | {"base": Base(pipe), "network": network_of(pipe)}
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    with torch.no_grad():
        expected = policy.predictor(encoded)(x, 1)
        assert not torch.allclose(policy.reference_predictor(encoded)(x, 1), expected)
        torch.testing.assert_close(other.predictor(encoded)(x, 1), expected)


def test_both_kinds_of_flux_blocks_are_adapted(tmp_path):
    policy = LoraPolicy(Base(FAMILIES["flux"]()), settings("unused", tmp_path / "run"))
    layers = {(name.split(".")[0], name.partition(".lora_")[0].split(".attn.")[1]) for name in policy.parameters()}
    single = {("single_transformer_blocks", name) for name in ("to_q", "to_k", "to_v")}
    assert layers == single | {("transformer_blocks", name) for name in JOINT_ATTENTION}


def test_recomputed_gradients_are_the_same(tmp_path):
    gradients = []
    for recompute in (False, True):
        config = settings("unused", tmp_path / "run", optimisation__gradient_checkpointing=recompute)
        policy = LoraPolicy(Base(FAMILIES["sd15"]()), config)
        stir(policy)
        encoded, x = policy.encode(PROMPTS[:2]), noise(policy)
        policy.recomputing(policy.predictor(encoded))(x, 0).square().mean().backward()
        gradients.append([p.grad for p in policy.parameters().values()])
    torch.testing.assert_close(*gradients)


def test_the_file_is_read_whole_and_is_pefts_delta(policy, tmp_path):
    stir(policy)
    family = policy.base.family
    tensors = export.lora_tensors(policy.unwrapped, family.spelling)
    path = tmp_path / "lora.safetensors"
    export.save_lora(path, tensors, {})
    adapter = read_adapter(path)
    resolved, report = resolve(adapter, target_index(network_of(policy.base.pipe)))
    assert report.matched == report.in_file > 0 and report.scale_source.startswith("scale 1.0")
    layers = dict(policy.unwrapped.named_modules())
    for target, change in resolved.items():
        factors = change.factors
        delta = factors.scale * factors.up @ factors.down
        expected = layers[target.module.removesuffix(".base_layer")].get_delta_weight("default")
        torch.testing.assert_close(delta, expected, rtol=1e-6, atol=1e-7)


def test_half_a_file_never_bears_the_name(policy, tmp_path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", full)
    with pytest.raises(BlendError, match=r"No space left.*untouched"):
        export.save_lora(path, export.lora_tensors(policy.unwrapped, "kohya"), {})
    assert path.read_bytes() == b"earlier" and list(tmp_path.glob(".*.part")) == []


def test_names_of_both_spellings(policy):
    state = get_peft_model_state_dict(policy.unwrapped)
    kohya, diffusers = export.kohya_names(state), export.diffusers_names(state)
    assert len(kohya) == len(state) * 3 // 2 and len(diffusers) == len(state)
    assert all(key.startswith("lora_unet_") for key in kohya)
    assert all(key.startswith("transformer.") for key in diffusers)
    ranks = {float(value) for key, value in kohya.items() if key.endswith(".alpha")}
    assert ranks == {2.0}


def test_unknown_layers_and_families_are_refused(tmp_path):
    config = settings("unused", tmp_path / "run", lora__targets=("nothing_like_it",))
    with pytest.raises(BlendError, match=r"lora\.targets is nothing_like_it"):
        LoraPolicy(Base(FAMILIES["sd15"]()), config)
    pipe = FAMILIES["sd15"]()

    class Unheard(type(pipe)):
        pass

    pipe.__class__ = Unheard
    with pytest.raises(BlendError, match="Unheard; trainers know"):
        Base(pipe)


def test_the_command_in_a_file_names_no_folder_of_the_machine(monkeypatch, tmp_path):
    command = [str(tmp_path / "diffusion-blend"), "train", "toy", "--set", f"output.folder={tmp_path / 'run'}", "a/b"]
    monkeypatch.setattr(sys, "argv", command)
    assert export.training_command() == "diffusion-blend train toy --set output.folder=run a/b"
