"""A blend equals copies of the model with merged weights, on every route through the nodes."""

import pytest
import torch

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
    alone = graph.blended(base, graph.blend([files[chosen]]), execution)
    assert torch.equal(result, alone)
    assert_equal(result, graph.plain(blended_reference(base, [merged[chosen + 1]], [1.0])))
    assert_differ(result, plain)


def test_the_order_of_the_loras_is_irrelevant(graph, base, files):
    forwards = graph.blended(base, graph.blend(files, "0.6, 0.3, 0.1"))
    backwards = graph.blended(base, graph.blend(files[::-1], "0.1, 0.3, 0.6"))
    assert_equal(backwards, forwards)


def test_weights_taken_as_they_are_keep_the_rest_for_the_base(graph, base, files, merged):
    blend = graph.blend(files, "0.3, 0.2, 0", normalise=False)
    assert_equal(graph.blended(base, blend), graph.plain(blended_reference(base, merged, (0.5, 0.3, 0.2, 0.0))))
