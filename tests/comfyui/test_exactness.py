"""A blend equals copies of the model with merged weights, on every route through the nodes."""

from dataclasses import replace

import pytest
import torch

from . import host, loras, networks
from .graphs import latent
from .reference import assert_differ, assert_equal, blended_reference

WEIGHTS = "0.6, 0.3, 0.1"
COEFFICIENTS = (0.0, 0.6, 0.3, 0.1)
SAMPLERS = ("euler", "dpmpp_2m", "heun", "euler_ancestral")


@pytest.fixture(scope="module")
def expected(graph, base, merged):
    """expected(sampler_name, cfg): the reference's picture, made once."""
    made = {}

    def make(sampler_name, cfg):
        if (sampler_name, cfg) not in made:
            reference = blended_reference(base, merged, COEFFICIENTS)
            made[sampler_name, cfg] = graph.plain(reference, sampler_name=sampler_name, cfg=cfg)
        return made[sampler_name, cfg]

    return make


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_blended_ksampler_equals_merged_copies(graph, base, files, expected, sampler_name, cfg, execution):
    sampling = {"sampler_name": sampler_name, "cfg": cfg}
    result = graph.blended(base, graph.blend(files, WEIGHTS), execution, **sampling)
    assert_equal(result, expected(sampler_name, cfg))


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_apply_blend_and_ksampler_equal_merged_copies(graph, base, files, expected, sampler_name, cfg, execution):
    model = graph.applied(base, graph.blend(files, WEIGHTS), execution)
    assert_equal(graph.plain(model, sampler_name=sampler_name, cfg=cfg), expected(sampler_name, cfg))


@pytest.mark.parametrize("alignment", [0.5, 1.6])
def test_alignment_mixes_in_the_base_or_goes_beyond_the_bases(graph, base, files, merged, plain, alignment):
    coefficients = (1 - alignment, *(alignment * c for c in COEFFICIENTS[1:]))
    inputs = {"latent_image": latent(batch=2)}
    reference = graph.plain(blended_reference(base, merged, coefficients), **inputs)
    assert_differ(reference[:1], plain)
    for execution in ("auto", "batched", "sequential"):
        assert_equal(graph.blended(base, graph.blend(files, WEIGHTS, alignment), execution, **inputs), reference)


@pytest.mark.parametrize("execution", ["auto", "batched", "sequential"])
def test_alignment_0_is_the_base_bit_for_bit(graph, base, files, plain, execution):
    blend = graph.blend(files, WEIGHTS, alignment=0.0)
    assert torch.equal(graph.blended(base, blend, execution), plain)
    assert torch.equal(graph.plain(graph.applied(base, blend, execution)), plain)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_one_hot_blend_is_that_lora_alone(graph, base, files, merged, plain, chosen, execution):
    weights = ", ".join("1" if i == chosen else "0" for i in range(3))
    result = graph.blended(base, graph.blend(files, weights), execution)
    single_run = graph.blended(base, graph.blend([files[chosen]]), execution)
    assert torch.equal(result, single_run)
    assert_equal(result, graph.plain(blended_reference(base, [merged[chosen + 1]], [1.0])))
    assert_differ(result, plain)


def test_the_order_of_the_loras_is_irrelevant(graph, base, files):
    forwards = graph.blended(base, graph.blend(files, "0.6, 0.3, 0.1"))
    backwards = graph.blended(base, graph.blend(files[::-1], "0.1, 0.3, 0.6"))
    assert_equal(backwards, forwards)


def test_weights_taken_as_they_are_keep_the_rest_for_the_base(graph, base, files, merged):
    blend = graph.blend(files, "0.3, 0.2, 0", normalise=False)
    assert_equal(graph.blended(base, blend), graph.plain(blended_reference(base, merged, (0.5, 0.3, 0.2, 0.0))))


SIGNED = ("1.5, -0.8, 0.4", "1, -1, 0", "-0.5, -0.5, 0", "-10, 10, 1")  # the sums are above 1, 0, below 0 and 1


@pytest.mark.parametrize("evaluation", ["exact", "budget"])
@pytest.mark.parametrize("weights", SIGNED)
def test_weights_of_any_sign_as_they_are_equal_merged_copies(graph, base, files, merged, weights, evaluation):
    numbers = [float(number) for number in weights.split(",")]
    expected = graph.plain(blended_reference(base, merged, (1 - sum(numbers), *numbers)))
    blend = graph.blend(files, weights, normalise=False)
    model = graph.applied(base, blend, evaluation=evaluation, budget=16.0)  # budget: every step is a full one
    assert_equal(graph.plain(model), expected)


@pytest.mark.parametrize("weights", SIGNED)
def test_weights_of_any_sign_merged_are_one_copy_with_all_of_them(graph, base, files, reward_loras, weights):
    numbers = [float(number) / 10 for number in weights.split(",")]
    together = networks.sd15().model
    for (lora, _), number in zip(reward_loras, numbers, strict=True):
        replace(lora, alpha=lora.alpha * number).merge_into(together)
    blend = graph.blend(files, ", ".join(map(str, numbers)), normalise=False)
    expected = graph.plain(blended_reference(base, [together], [1.0]))
    assert_equal(graph.plain(graph.applied(base, blend, evaluation="merged")), expected)


@pytest.mark.parametrize("alignment", [-10.0, -0.5, 3.5, 10.0])
def test_alignments_from_minus_10_to_10_equal_merged_copies(graph, base, files, merged, alignment):
    expected = graph.plain(blended_reference(base, merged[:2], (1 - alignment, alignment)))
    assert_equal(graph.blended(base, graph.blend(files[:1], alignment=alignment)), expected)


@pytest.mark.parametrize("scale", [-10.0, -1.0, 0.3, 10.0])
def test_a_scale_from_minus_10_to_10_is_the_scale_of_merging(graph, base, nodes, reward_loras, lora_folder, scale):
    everything = reward_loras[0][0]
    tenth = {layer: (down, up / 10) for layer, (down, up) in everything.factors.items()}
    lora = replace(everything, label="tenth_of_everything", factors=tenth)
    file = loras.write_kohya(lora, lora_folder)
    (basis,) = nodes["LoadRewardLoRA"].execute(lora_name=file, label="", kl_weight=0.0, scale=scale).result
    merged = replace(lora, alpha=lora.rank * scale).merge_into(networks.sd15().model)
    assert_equal(graph.blended(base, graph.blend([basis])), graph.plain(blended_reference(base, [merged], [1.0])))


def test_weights_of_one_basis_that_cancel_one_another_leave_the_base_beside_another_blend(graph, base, files, plain):
    basis, other = graph.blend(files[:2]).bases
    nothing = graph.blend([basis, basis], "0.5, -0.5", normalise=False)
    wide, _ = host.submodule("nodes.types").joined(nothing, graph.blend([other]))
    assert torch.equal(graph.blended(base, wide), plain)


def test_a_region_of_weights_below_0_equals_merged_copies(graph, base, files, merged, nodes):
    blend = graph.blend(files[:2], "1.5, -0.8", normalise=False)
    (painted,) = nodes["BlendRegion"].execute(blend=blend, mask=torch.ones(1, 8, 8)).result
    expected = graph.plain(blended_reference(base, merged[:3], (0.3, 1.5, -0.8)))
    assert_equal(graph.blended(base, painted), expected)
