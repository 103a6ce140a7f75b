"""Blend Window inside ComfyUI, against ComfyUI's own LoRAs in two samplers and against merged copies step by step."""

import pytest
import torch

from nodes import KSamplerAdvanced  # ComfyUI's own

from .graphs import latent
from .reference import _apply, _replaced, assert_equal, relative_error

ROUNDING = 1e-5
INPUTS = {"latent_image": latent(batch=2)}
SPLIT = 2


@pytest.fixture
def window(nodes):
    """window(blend, start, end, **others): Blend Window."""

    def make(blend, start=0, end=SPLIT, **others):
        node = nodes["BlendWindow"]
        return node.execute(blend=blend, start_at_step=start, end_at_step=end, **others).result[0]

    return make


def in_two(graph, first, second, steps, sampler_name="euler"):
    """KSampler (Advanced) from 0 to SPLIT with one model, and from there with another."""
    shared = {"noise_seed": 1, "steps": steps, "cfg": 7.0, "sampler_name": sampler_name, "scheduler": "normal"}
    shared |= {"positive": graph.positive, "negative": graph.negative}
    node = KSamplerAdvanced()
    (half,) = node.sample(
        first, **shared, add_noise="enable", start_at_step=0, end_at_step=SPLIT,
        latent_image=INPUTS["latent_image"], return_with_leftover_noise="enable",
    )  # fmt: skip
    (whole,) = node.sample(
        second, **shared, add_noise="disable", start_at_step=SPLIT, end_at_step=10000, latent_image=half,
        return_with_leftover_noise="disable",
    )  # fmt: skip
    return whole["samples"]


@pytest.mark.parametrize("steps", [4, 8, 9])
@pytest.mark.parametrize("evaluation", ["exact", "merged", "stratified", "random", "budget"])
def test_one_lora_in_the_first_two_steps_equals_two_samplers(graph, base, merged, files, window, steps, evaluation):
    """merged[1]: the base with ComfyUI's own merge of the LoRA."""
    blend = window(graph.blend(files[:1]))
    tuned = _replaced(base, lambda call: _apply(merged[1], call))
    result = graph.plain(graph.applied(base, blend, evaluation=evaluation), steps=steps, **INPUTS)
    assert_equal(result, in_two(graph, tuned, base, steps), ROUNDING)
    assert relative_error(result, graph.plain(base, steps=steps, **INPUTS)) > 10 * ROUNDING


@pytest.mark.parametrize(
    ("sampler_name", "calls"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 1), ("euler_ancestral", 1)]
)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_it_equals_merged_copies_step_by_step(graph, base, merged, files, window, sampler_name, calls, denoise):
    """With what a sampler remembers across the edge: dpmpp_2m uses the prediction of the step before."""
    steps, at = 5, [step for step in range(5) for _ in range(calls if step < 4 else 1)]
    step_of_call = iter(at)
    blend = window(graph.blend(files), 1, 3, outside=graph.blend([files[2]]))

    def predict(call):
        if 1 <= next(step_of_call) < 3:
            return sum(_apply(network, call) for network in merged[1:]) / 3
        return _apply(merged[3], call)

    sampling = {"sampler_name": sampler_name, "steps": steps, "denoise": denoise, **INPUTS}
    expected = graph.plain(_replaced(base, predict), **sampling)
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(base, blend, execution, **sampling), expected)


def test_a_window_of_a_job_counts_the_steps_of_both_samplers(graph, base, files, window):
    steps, blend = 5, window(graph.blend(files), 1, 4)
    first, second = (graph.applied(base, blend, job_steps=steps, start_at_step=start) for start in (0, SPLIT))
    assert_equal(in_two(graph, first, second, steps), graph.blended(base, blend, steps=steps, **INPUTS), ROUNDING)


def test_regions_take_windows(graph, nodes, base, files, window):
    """A mask that is white everywhere: the window alone."""
    blend = window(graph.blend(files))
    painted = nodes["BlendRegion"].execute(blend=blend, mask=torch.ones(1, 8, 8)).result[0]
    assert_equal(graph.blended(base, painted, **INPUTS), graph.blended(base, blend, **INPUTS), ROUNDING)


def test_the_node_refuses_what_it_cannot_hold(graph, nodes, files, window):
    blend = graph.blend(files[:1])
    painted = nodes["BlendRegion"].execute(blend=blend, mask=torch.ones(1, 8, 8)).result[0]
    with pytest.raises(ValueError, match="Put Blend Window before Blend Region"):
        window(painted)
    with pytest.raises(ValueError, match="Set end_at_step above start_at_step"):
        window(blend, 3, 2)
    with pytest.raises(ValueError, match="regions and windows take schedules"):
        nodes["BlendSchedule"].execute(blends={"blend_0": window(blend), "blend_1": blend}, curve="linear")
