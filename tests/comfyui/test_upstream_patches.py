"""What other nodes do to the model, the prompts or the latent works on a blend as on one model."""

import comfy.controlnet
import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_model_advanced import RescaleCFG

from nodes import ControlNetApplyAdvanced

from . import loras, networks
from .graphs import noisy_latent
from .reference import assert_differ, assert_equal, blended_reference

WEIGHTS = "0.5, 0.3, 0.2"
COEFFICIENTS = (-0.2, 0.6, 0.36, 0.24)


@pytest.fixture(scope="module")
def unpatched(graph, base, merged):
    """The reference's picture without any patch."""
    with torch.inference_mode():
        return graph.plain(blended_reference(base, merged, COEFFICIENTS), steps=2)


@pytest.fixture
def assert_blends(graph, files, merged, unpatched):
    """assert_blends(model, patch, **inputs): equal to the reference under the same patches and inputs.

    With patch(model) before the blend, by Blended KSampler, and after it, by Apply Blend and KSampler; in either
    execution.
    """

    def check(model, patch=lambda model: model, copies=merged, **inputs):
        inputs = {"steps": 2, **inputs}
        blend = graph.blend(files, WEIGHTS, alignment=1.2)
        reference = graph.plain(blended_reference(patch(model), copies, COEFFICIENTS), **inputs)
        for execution in ("batched", "sequential"):
            assert_equal(graph.blended(patch(model), blend, execution, **inputs), reference)
            assert_equal(graph.plain(patch(graph.applied(model, blend, execution)), **inputs), reference)
        assert_differ(reference[:1], unpatched)

    return check


def test_freeu(base, assert_blends, monkeypatch):
    # FreeU acts on layers of 4 and 2 times the network's width; the tiny network has them all at one.
    monkeypatch.setitem(base.model.model_config.unet_config, "model_channels", 16)
    assert_blends(base, lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2).result[0])


def test_rescale_cfg(base, assert_blends):
    assert_blends(base, lambda model: RescaleCFG().patch(model, 0.7)[0])


def test_a_patch_of_the_attentions_output_on_the_conditional_rows(base, assert_blends):
    def on_conditional_rows(out, options):
        rows = len(out) // len(options["cond_or_uncond"])
        start = options["cond_or_uncond"].index(0) * rows
        out = out.clone()
        out[start : start + rows] += 0.5 * out[start : start + rows].mean(1, keepdim=True)
        return out

    def patch(model):
        clone = model.clone()
        clone.set_model_attn1_output_patch(on_conditional_rows)
        return clone

    assert_blends(base, patch)


def test_an_image_prompt_in_the_cross_attention(base, assert_blends):
    """Extra keys for the conditional rows, zeros for the others. As IPAdapter does it: test_other_packs."""
    image = torch.randn(1, 4, networks.CONTEXT, generator=torch.Generator().manual_seed(31))

    def with_image(query, keys, values, options):
        rows = len(query) // len(options["cond_or_uncond"])
        extra = [image.expand(rows, -1, -1) * (kind == 0) for kind in options["cond_or_uncond"]]
        extra = torch.cat(extra).to(keys)
        return query, torch.cat([keys, extra], 1), torch.cat([values, 2 * extra], 1)

    def patch(model):
        clone = model.clone()
        clone.set_model_attn2_patch(with_image)
        return clone

    assert_blends(base, patch)


def test_a_stock_lora_beside_the_blend(base, merged, assert_blends):
    names = comfy.utils.unet_to_diffusers(base.model.model_config.unet_config)
    style = loras.random_lora("style", loras.layers_of(base.model, names), rank=2, alpha=2.0, seed=9)
    state = loras.native_keys(style)

    def styled(model):
        return comfy.sd.load_lora_for_models(model, None, state, 0.8, 0.0)[0]

    copies = [styled(_patcher(network, base)) for network in merged[1:]]
    comfy.model_management.load_models_gpu(copies)
    try:
        assert_blends(base, styled, [base.model, *(copy.model for copy in copies)])
    finally:
        for copy in copies:
            copy.unpatch_model()


def _patcher(network, like) -> ModelPatcher:
    return ModelPatcher(network, like.load_device, like.offload_device)


def test_a_control_net(graph, base, assert_blends):
    control = comfy.controlnet.ControlNet(networks.control_net(), load_device=torch.device("cpu"))
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(32))
    apply = ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(graph.positive, graph.negative, control, image, 0.7, 0.0, 1.0)
    assert_blends(base, positive=positive, negative=negative)


def test_inpainting_with_a_noise_mask(base, assert_blends):
    mask = torch.zeros(1, 8, 8)
    mask[..., 3:] = 1
    assert_blends(base, latent_image=noisy_latent(noise_mask=mask))


def test_a_denoise_below_1(base, assert_blends):
    assert_blends(base, latent_image=noisy_latent(), denoise=0.5)


def test_prompts_of_their_own_areas_strengths_and_lengths(base, assert_blends):
    left = networks.conditioning(41, length=8, area=(8, 4, 0, 0), strength=0.8)
    right = networks.conditioning(42, length=16, area=(8, 4, 0, 4), strength=1.0)
    assert_blends(base, positive=[*left, *right], latent_image=noisy_latent(batch=2))


def test_masked_prompts(graph, base, assert_blends):
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(43))
    masked = networks.conditioning(44, mask=mask, mask_strength=1.0)
    assert_blends(base, positive=[*graph.positive, *masked])


def test_a_prompt_for_part_of_the_steps(graph, base, assert_blends):
    early = networks.conditioning(45, start_percent=0.0, end_percent=0.5)
    late = networks.conditioning(46, start_percent=0.5, end_percent=1.0)
    assert_blends(base, positive=[*early, *late], steps=3)
