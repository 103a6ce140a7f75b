"""One basis per step: what the sampler lists is what it applied, and its choices touch nothing else."""

import pytest
import torch

from .graphs import latent
from .reference import assert_differ, assert_equal, switching_reference

SELECTIONS = ("stratified", "random")
WEIGHTS = "0.5, 0.3, 0.2"
EVERY_STEP = {"euler": [0, 1, 2, 3], "heun": [0, 0, 1, 1, 2, 2, 3]}  # heun's last step needs no corrector


@pytest.fixture
def blend(graph, files):
    """All three LoRAs and some of the base."""
    return graph.blend(files, WEIGHTS, alignment=0.8)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_seed_decides_the_picture_and_the_choices(graph, base, blend, selection):
    inputs = {"latent_image": latent(batch=2), "steps": 4, "cfg": 1.0}
    result, choices = graph.stochastic(base, blend, selection, **inputs)
    again, same_choices = graph.stochastic(base, blend, selection, **inputs)
    assert torch.equal(again, result)
    assert torch.equal(same_choices, choices)
    _, other_choices = graph.stochastic(base, blend, selection, **inputs, seed=2)
    assert not torch.equal(other_choices, choices)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_batch_equals_its_images_one_by_one(graph, base, blend, selection):
    inputs = {"steps": 4, "sampler_name": "dpmpp_2m"}
    batch, choices = graph.stochastic(base, blend, selection, latent_image=latent(batch=3), **inputs)
    assert not torch.equal(choices[0], choices[1])
    for i in range(3):
        one_latent = latent(batch_index=[i])  # as Latent From Batch gives it
        one, one_choices = graph.stochastic(base, blend, selection, latent_image=one_latent, **inputs)
        assert torch.equal(one_choices[0], choices[i])
        assert_equal(one[0], batch[i])


@pytest.mark.parametrize("sampler_name", ["euler", "heun"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_listed_choices_are_the_ones_applied(graph, base, blend, merged, selection, sampler_name):
    inputs = {"latent_image": latent(batch=2), "steps": 4, "sampler_name": sampler_name}
    result, choices = graph.stochastic(base, blend, selection, **inputs)
    assert choices.shape == (2, 4)
    assert len(choices.unique()) > 1
    reference = switching_reference(base, merged, choices, EVERY_STEP[sampler_name])
    assert_equal(result, graph.plain(reference, **inputs))


@pytest.mark.parametrize("selection", [*SELECTIONS, "budget"])
def test_apply_blend_makes_the_choices_of_the_sampler_node(graph, base, blend, selection):
    inputs = {"latent_image": latent(batch=2), "steps": 4, "cfg": 1.0, "seed": 5}
    result, _ = graph.stochastic(base, blend, selection, **inputs)
    applied = graph.applied(base, blend, evaluation=selection, seed=5)
    assert_equal(graph.plain(applied, **inputs), result)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_choices_do_not_disturb_the_samplers_noise(graph, base, files, merged, selection):
    """All weight on one basis: an ancestral run has to equal that basis' own, noise included."""
    inputs = {"sampler_name": "euler_ancestral", "steps": 4}
    result, choices = graph.stochastic(base, graph.blend(files, "0, 1, 0"), selection, **inputs)
    random_state = torch.get_rng_state()
    assert choices.unique().tolist() == [2]
    reference = switching_reference(base, merged, choices, [0, 1, 2, 3])
    assert_equal(result, graph.plain(reference, **inputs))
    assert torch.equal(torch.get_rng_state(), random_state)  # some samplers draw from it


def test_stratified_shares_follow_the_weights(graph, base, files):
    inputs = {"steps": 10, "cfg": 1.0, "latent_image": latent(shape=(4, 4, 4))}
    _, choices = graph.stochastic(base, graph.blend(files, WEIGHTS), **inputs)
    assert torch.bincount(choices[0], minlength=4).tolist() == [0, 5, 3, 2]


def test_one_basis_per_step_is_not_the_exact_blend(graph, base, blend):
    """The other comparisons would hold for a sampler that ignored its choices."""
    result, _ = graph.stochastic(base, blend, steps=4)
    assert_differ(result, graph.blended(base, blend, steps=4))
