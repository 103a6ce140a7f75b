"""Transformers: adapters on slices of fused weights, videos as five-dimensional latents."""

import comfy.utils
import pytest

from . import loras, networks
from .graphs import Graph, latent
from .reference import assert_differ, assert_equal, blended_reference

COEFFICIENTS = (-0.3, 0.78, 0.52)
WAN_LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "ffn.0", "ffn.2")


def assert_blend_equals_merged_copies(nodes, folder, state, layers, write, shape, **extra):
    """Two LoRAs of unlike coverage, in either execution."""
    model = networks.load(state)
    made = [
        loras.random_lora(f"{model.model.__class__.__name__}_all", layers(model), rank=3, alpha=3.0, seed=1),
        loras.random_lora(f"{model.model.__class__.__name__}_some", layers(model)[::2], rank=2, alpha=2.0, seed=2),
    ]
    copies = [model.model, *(lora.merge_into(networks.load(state).model) for lora in made)]
    prompts = [networks.conditioning(seed, width=4096, **extra) for seed in (51, 52)]
    graph, inputs = Graph(nodes, *prompts), {"latent_image": latent(2, shape), "cfg": 3.0}
    expected = graph.plain(blended_reference(model, copies, COEFFICIENTS), **inputs)
    assert_differ(expected, graph.plain(model, **inputs))
    blend = graph.blend([write(lora, folder) for lora in made], "0.6, 0.4", alignment=1.3)
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(model, blend, execution, **inputs), expected)


def test_sd3_with_fused_query_key_and_value(nodes, lora_folder):
    def layers(model):
        names = comfy.utils.mmdit_to_diffusers(model.model.model_config.unet_config)
        found = loras.layers_of(model.model, names)
        assert any(layer.rows for layer in found)
        assert any(layer.reorder for layer in found)
        return found

    extra = {"pooled_output": networks.pooled(53, 2048)}
    state, write = networks.sd3(), loras.write_transformer
    assert_blend_equals_merged_copies(nodes, lora_folder, state, layers, write, (16, 8, 8), **extra)


def test_flux_with_fused_query_key_value_and_mlp(nodes, lora_folder):
    def layers(model):
        names = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config)
        found = loras.layers_of(model.model, names)
        assert any(layer.name.endswith("proj_mlp") and layer.rows for layer in found)
        return found

    extra = {"pooled_output": networks.pooled(53, 768)}
    state, write = networks.flux(), loras.write_transformer
    assert_blend_equals_merged_copies(nodes, lora_folder, state, layers, write, (16, 8, 8), **extra)


@pytest.mark.parametrize("frames", [1, 3])
def test_wan_with_latents_of_several_frames(nodes, lora_folder, frames):
    def layers(model):
        modules = [f"blocks.0.{layer}" for layer in WAN_LAYERS]
        network = model.model.diffusion_model
        return [loras.Layer(name, name, tuple(network.get_submodule(name).weight.shape)) for name in modules]

    state, shape = networks.wan(), (16, frames, 8, 8)
    assert_blend_equals_merged_copies(nodes, lora_folder, state, layers, loras.write_native, shape)
