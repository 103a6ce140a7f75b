"""Bases of few bits in ComfyUI's own formats: a blend moves the picture as a merge into their unpacked weights does."""

import json

import comfy.quant_ops
import comfy.sd
import pytest
import torch

from . import kinds, loras, networks
from .families import named
from .graphs import Graph, latent
from .reference import assert_differ

FORMATS = {
    "float8_e4m3fn": {},
    "float8_e5m2": {},
    "int8_tensorwise": {},
    "int8_tensorwise, rotated": {"convrot": True, "convrot_groupsize": 64},
    "mxfp8": {},
    "nvfp4": {},
    "convrot_w4a4": {"convrot_groupsize": 64},
    "asym_w4a8_int8": {"convrot_groupsize": 64, "group_size": 16},
}
DOWN = "blocks.0.ffn.2"  # the projection that ComfyUI joins with its activation where the base has eight bits


def quantised(state, name):
    """(a state dict whose blocks' matrices are in the format, as ComfyUI saves them; the numbers they stand for)."""
    kind, options = name.split(",")[0], FORMATS[name]
    algorithm = getattr(comfy.quant_ops, "QUANT_ALGOS", {}).get(kind)
    if algorithm is None:
        pytest.skip(f"{kind} is not in this ComfyUI")
    packed, rounded = dict(state), dict(state)
    for key in [key for key, value in state.items() if key.startswith("blocks.") and value.dim() == 2]:
        layer, _, part = key.rpartition(".")
        if part != "weight":
            continue
        try:
            rotated = {"per_channel": True} if kind.startswith("int8") and options else {}
            layout = algorithm["comfy_tensor_layout"]
            tensor = comfy.quant_ops.QuantizedTensor.from_float(state[key], layout, **options, **rotated)
            rounded[key] = tensor.dequantize().float()
        except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
            pytest.skip(f"ComfyUI packs no {name} on this machine: {str(error).splitlines()[0]}")
        del packed[key]
        packed |= tensor.state_dict(key)
        config = {"format": kind, **options}
        packed[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    return packed, rounded


@pytest.mark.parametrize("name", FORMATS)
def test_a_blend_on_a_quantised_base(name, nodes, lora_folder):
    family = named("Wan 2.1")
    packed, rounded = quantised(networks.wan(), name)
    model, reference = (comfy.sd.load_diffusion_model_state_dict(dict(s), model_options={}) for s in (packed, rounded))
    held = {type(module.weight).__name__ for key, module in model.model.named_modules() if key.endswith(DOWN)}
    assert held == {"QuantizedTensor"}
    for patcher in (model, reference):
        patcher.set_model_compute_dtype(torch.float32)
    graph = Graph(nodes, family.prompt(51), family.prompt(52))
    inputs = {"latent_image": latent(1, family.latent), "steps": 2, "cfg": 2.0}
    base, unpacked = graph.plain(model, **inputs), graph.plain(reference, **inputs)
    rounding = float((base - unpacked).norm())  # what rounding of activations does to the base
    layers = {layer.name: layer for layer in family.own_layers(reference) if layer.name.startswith("blocks.")}
    for chosen in ([layers[DOWN]], list(layers.values())):
        tensors = kinds.written(kinds.lora, chosen, "diffusion_model.{}".format, seed=3)
        strength = 20 if len(chosen) == 1 else 2
        tensors |= {key: strength * value for key, value in tensors.items() if "lora_up" in key}
        file = loras.save(tensors, lora_folder, "on_quantised.safetensors")
        merged, _ = comfy.sd.load_lora_for_models(reference, None, dict(tensors), 1.0, 0.0)
        expected = graph.plain(merged, **inputs)
        assert_differ(expected, unpacked)
        for execution in ("batched", "sequential"):
            for alignment in (1.0, 0.4):
                blend = graph.blend([file], alignment=alignment)
                came = graph.blended(model, blend, execution, **inputs)
                if alignment == 1.0:
                    error, effect = float((came - expected).norm()), float((expected - unpacked).norm())
                    assert error <= 3 * rounding + 1e-4 * effect, (error, rounding, effect)
                assert_differ(came, base)
    assert torch.equal(graph.plain(model, **inputs), base)
