"""The policy on tiny networks of three families: the LoRA off is the base, its file is its delta."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusion_blend.blend_core import read_adapter, resolve
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.pipelines import network_of, target_index
from diffusion_blend.trainers import export
from diffusion_blend.trainers.bases import Base
from diffusion_blend.trainers.policy import Policy
from peft.utils import get_peft_model_state_dict

from .worlds import FAMILIES, PROMPTS, settings


@pytest.fixture(params=FAMILIES)
def policy(request, tmp_path):
    base = Base(FAMILIES[request.param]())
    return Policy(base, settings("unused", tmp_path / "run"))


def noise(policy, count=2):
    return policy.noise([torch.Generator().manual_seed(i) for i in range(count)])()


def stir(policy, size=0.3):
    """A LoRA that does something."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


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


def test_guidance_is_the_pipelines(policy):
    """cfg 1 is the prompted prediction alone, and the guided one extrapolates it."""
    encoded, x = policy.encode(PROMPTS[:2]), noise(policy)
    cfg, policy.cfg = policy.cfg, 1.0
    with torch.no_grad():
        prompted = policy.predictor(policy.encode(PROMPTS[:2]))(x, 0)
        empty = policy.base.call(policy.network, x, policy.steps[0].timestep, policy.base.conditions(PROMPTS[:2])[1])
        policy.cfg = cfg
        guided = policy.predictor(encoded)(x, 0)
    torch.testing.assert_close(guided, empty + cfg * (prompted - empty), rtol=1e-4, atol=1e-5)


def test_our_sampler_is_the_pipelines(tmp_path):
    """Noise-free: the same latents as diffusers' own call gives, so that nothing is trained on another sampler."""
    pipe = FAMILIES["sd15"]()
    pipe.set_progress_bar_config(disable=True)
    base = Base(pipe)
    policy = Policy(base, settings("unused", tmp_path / "run"))
    from diffusion_blend.trainers.transition import ddim_steps

    policy.steps = ddim_steps(pipe.scheduler, 4, 0.0)
    x = noise(policy)
    theirs = pipe(PROMPTS[:2], num_inference_steps=4, guidance_scale=2.0, eta=0.0, latents=x, output_type="pt").images
    predict = policy.predictor(policy.encode(PROMPTS[:2]))
    with torch.no_grad():
        for k, step in enumerate(policy.steps):
            x = step.mean(x, predict(x, k))
        torch.testing.assert_close(policy.decode(x), theirs, rtol=1e-4, atol=1e-5)


def test_recomputed_gradients_are_the_same(tmp_path):
    gradients = []
    for recompute in (False, True):
        config = settings("unused", tmp_path / "run", optimisation__gradient_checkpointing=recompute)
        policy = Policy(Base(FAMILIES["sd15"]()), config)
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
    factors, report = resolve(adapter, target_index(network_of(policy.base.pipe)))
    assert report.matched == report.in_file > 0 and report.scale_source.startswith("scale 1.0")
    layers = dict(policy.unwrapped.named_modules())
    for target, each in factors.items():
        delta = each.scale * each.up @ each.down
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
    assert len(kohya) == len(diffusers) == len(state) * 3 // 2
    assert all(key.startswith("lora_unet_") for key in kohya)
    assert all(key.startswith("transformer.") for key in diffusers)
    ranks = {float(value) for key, value in kohya.items() if key.endswith(".alpha")}
    assert ranks == {2.0}


def test_unknown_layers_and_families_are_refused(tmp_path):
    config = settings("unused", tmp_path / "run", lora__targets=("nothing_like_it",))
    with pytest.raises(BlendError, match=r"lora\.targets is nothing_like_it"):
        Policy(Base(FAMILIES["sd15"]()), config)
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
