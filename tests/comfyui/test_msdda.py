"""MSDDA in ComfyUI: equal eta is the blended ancestral sampler, different eta the fusion of separate models' steps."""

import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    RandomNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .families import named
from .family_cases import Case
from .graphs import latent
from .host import submodule
from .reference import assert_differ, assert_equal, fused_reference

WEIGHTS = "0.6, 0.3, 0.1"


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_with_equal_eta_it_is_the_blended_ancestral_sampler(graph, base, files, execution, cfg):
    blend = graph.blend(files, WEIGHTS, alignment=1.3)
    expected = graph.blended(base, blend, execution, sampler_name="euler_ancestral", cfg=cfg)
    assert_equal(graph.msdda(base, blend, execution, cfg=cfg), expected)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_with_unlike_eta_it_is_the_fusion_of_the_models_own_steps(graph, base, files, merged, execution, cfg):
    blend, inputs = graph.blend(files, WEIGHTS, alignment=0.8), {"latent_image": latent(batch=2), "cfg": cfg}
    etas, coefficients = (0.9, 1.0, 0.5, 0.7), (0.2, 0.48, 0.24, 0.08)
    expected = fused_reference(graph, base, merged, coefficients, etas, **inputs)
    assert_equal(graph.msdda(base, blend, execution, "1, 0.5, 0.7", 0.9, **inputs), expected)
    assert_differ(graph.msdda(base, blend, execution, "1, 1, 1", 1.0, **inputs), expected)


def test_a_flow_model_with_equal_eta_is_its_blended_ancestral_sampler(nodes, lora_folder):
    """Unlike eta of flow models: test_families."""
    case = Case(named("Flux"), nodes, lora_folder)
    expected = case.graph.blended(case.model, case.blend(0.9), sampler_name="euler_ancestral", **case.inputs)
    assert_equal(case.graph.msdda(case.model, case.blend(0.9), etas="1, 1", **case.inputs), expected)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_a_region_of_ones_is_its_blend_and_one_of_zeros_what_lies_elsewhere(graph, base, files, execution):
    inside, elsewhere = joined(graph, files)
    for value, source in ((1.0, inside), (0.0, elsewhere)):
        blend = painted(graph, inside, torch.full((1, 64, 64), value), elsewhere)
        expected = graph.msdda(base, source, execution, "1, 0.5, 0.7", 0.9)
        assert_equal(graph.msdda(base, blend, execution, "1, 0.5, 0.7", 0.9), expected)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_with_regions_every_position_fuses_its_own_steps(graph, base, files, merged, execution):
    inside, elsewhere = joined(graph, files)
    masks = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(4))
    layers = [torch.tensor(blend.schedule.blends[0].coefficients) for blend in (inside, elsewhere)]
    maps = [(c * masks + other * (1 - masks))[:, None] for c, other in zip(*layers, strict=True)]
    inputs = {"latent_image": latent(batch=2)}
    expected = fused_reference(graph, base, merged, maps, (0.9, 1.0, 0.5, 0.7), **inputs)
    blend = painted(graph, inside, masks, elsewhere)
    assert_equal(graph.msdda(base, blend, execution, "1, 0.5, 0.7", 0.9, **inputs), expected)
    assert_differ(graph.msdda(base, inside, execution, "1, 0.5, 0.7", 0.9, **inputs), expected)


def joined(graph, files):
    """Two blends of the same LoRAs."""
    inside = graph.blend(files, WEIGHTS, alignment=0.8)
    return inside, type(inside)(graph.blend(files, "0, 0.5, 0.5", alignment=1.1).schedule, inside.bases)


def painted(graph, inside, mask, elsewhere):
    """Blend Region."""
    return graph.nodes["BlendRegion"].execute(blend=inside, mask=mask, elsewhere=elsewhere).result[0]


def test_as_a_sampler_it_takes_the_blend_of_the_model(graph, nodes, base, files):
    blend = graph.blend(files, WEIGHTS)
    model = graph.applied(base, blend)
    (sampler,) = nodes["MSDDASampler"].execute(etas="1, 0.5, 0.7").result
    settings = graph._inputs({"cfg": 1.0})
    sigmas = BasicScheduler.execute(model, settings["scheduler"], settings["steps"], 1.0).result[0]
    guider = BasicGuider.execute(model, settings["positive"]).result[0]
    noise = RandomNoise.execute(settings["seed"]).result[0]
    result = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, settings["latent_image"]).result[0]
    assert_equal(result["samples"], graph.msdda(base, blend, etas="1, 0.5, 0.7", cfg=1.0))


def test_files_state_their_eta(graph, base, files, lora_folder):
    file = files[2]
    with safe_open(lora_folder / file, "pt") as stored:
        header = stored.metadata() or {}
    save_file(
        load_file(lora_folder / file), lora_folder / "stated.safetensors", header | {"diffusion_blend.eta": "0.5"}
    )
    by_hand = graph.msdda(base, graph.blend([files[0], file], "0.6, 0.4"), etas="1, 0.5")
    stated = graph.blend([files[0], "stated.safetensors"], "0.6, 0.4")
    assert torch.equal(graph.msdda(base, stated, etas=""), by_hand)
    assert_differ(graph.msdda(base, stated, etas="1, 1"), by_hand)


def test_after_it_the_model_is_as_before(graph, base, files, plain):
    graph.msdda(base, graph.blend(files, WEIGHTS), etas="1, 0.5, 0.7")
    assert torch.equal(graph.plain(base), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"etas": "1, 0.5"}, "2 etas came for 3 reward LoRAs"),
        ({"etas": "a, b, c"}, "not numbers"),
        ({"etas": "1, 0, 1"}, "expected above 0 and up to 1"),
        ({"etas": "1, 2, 1"}, "expected above 0 and up to 1"),
    ],
)
def test_etas_that_cannot_be_are_refused(graph, base, files, options, message):
    with pytest.raises(ValueError, match=message):
        graph.msdda(base, graph.blend(files, WEIGHTS), **options)


def test_a_model_without_a_blend_or_with_one_variant_per_step_is_refused(graph, base, files):
    sampler = comfy.samplers.KSAMPLER(submodule("nodes.host.msdda").sample_msdda, {"etas": "", "base_eta": 1.0})
    settings = graph._inputs({})
    sigmas = BasicScheduler.execute(base, settings["scheduler"], 2, 1.0).result[0]
    stochastic = graph.applied(base, graph.blend(files, WEIGHTS), evaluation="stratified")
    for model, message in ((base, "has no blend"), (stochastic, "Set its evaluation to exact")):
        with pytest.raises(ValueError, match=message):
            SamplerCustom.execute(
                model, True, 1, 3.0, settings["positive"], settings["negative"], sampler, sigmas, latent()
            )
