"""The budget evaluation: the exact blend where it may spend everything, its plan where it may not."""

import pytest
import torch

from .graphs import latent
from .host import submodule
from .reference import assert_equal, planned_reference

WEIGHTS = "0.5, 0.3, 0.2"


@pytest.fixture
def blend(graph, files):
    return graph.blend(files, WEIGHTS)


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "euler_ancestral"])
def test_one_step_is_full_and_so_exact(graph, base, blend, sampler_name):
    inputs = {"latent_image": latent(batch=2), "steps": 1, "sampler_name": sampler_name}
    result, choices = graph.stochastic(base, blend, "budget", **inputs)
    assert (choices == 4).all()  # "all"
    assert_equal(result, graph.blended(base, blend, **inputs))


@pytest.mark.parametrize("sampler_name", ["euler", "heun"])
def test_a_budget_of_all_rewards_is_exact(graph, base, blend, sampler_name):
    inputs = {"latent_image": latent(batch=2), "steps": 4, "sampler_name": sampler_name}
    result, choices = graph.stochastic(base, blend, "budget", budget=3.0, **inputs)
    assert (choices == 4).all()
    assert_equal(result, graph.blended(base, blend, **inputs))


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("alignment", [1.0, 1.6])
def test_budget_equals_its_plan_on_merged_models(graph, base, files, merged, cfg, alignment):
    """What the plan makes of predictions is tested in tests/core; here they reach it right, row by row."""
    blend = graph.blend(files, WEIGHTS, alignment=alignment)
    inputs = {"steps": 8, "latent_image": latent(batch=2), "cfg": cfg, "seed": 1}
    result, choices = graph.stochastic(base, blend, "budget", budget=1.3, **inputs)
    assert (choices[:, 0] == 4).all() and (choices[:, 1:] < 4).any()
    estimators = submodule("blend_core.estimators")
    coefficients = blend.schedule.blends[0].coefficients
    plan = estimators.budget(coefficients, 8, [estimators.image_seed(1, i) for i in range(2)], 1.3)
    assert_equal(result, graph.plain(planned_reference(base, merged, plan), **inputs))


def test_a_seed_gives_one_picture_whatever_ran_before(graph, base, blend):
    inputs = {"latent_image": latent(batch=2), "steps": 4}
    model = graph.applied(base, blend, evaluation="budget", seed=1)
    first = graph.plain(model, **inputs)
    graph.plain(model, latent_image=latent(batch=2), steps=3)
    assert torch.equal(graph.plain(model, **inputs), first)


def test_nothing_of_a_run_stays_behind_it(graph, base, blend):
    """ComfyUI caches a node's output, and with it the plan, for as long as it likes."""
    patching = submodule("nodes.host.apply")
    applied = patching.apply_blend(base, blend, submodule("blend_core.estimators").budget, "sequential", 1)
    graph.plain(applied.model, latent_image=latent(batch=2), steps=3)
    assert applied.wrappers.last.plan.evaluations_per_step > 1
    assert applied.wrappers.last.plan.memory.tracks == {}
