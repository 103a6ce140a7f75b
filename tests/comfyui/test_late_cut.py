"""`until` of KL Interpolate inside ComfyUI: the blend to a step and the base after it, as two samplers make them."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from nodes import KSamplerAdvanced  # ComfyUI's own

from .graphs import latent
from .reference import _apply, _replaced, assert_equal, relative_error

STEPS, KEPT, UNTIL = 5, 3, 0.6
EVALUATIONS = ("exact", "merged", "stratified", "random", "budget")
ROUNDING = 1e-5
INPUTS = {"latent_image": latent(batch=2), "steps": STEPS}


@pytest.fixture
def ended(nodes):
    """ended(blend, until): KL Interpolate with that `until`."""
    return lambda blend, until=UNTIL: nodes["KLInterpolate"].execute(blend=blend, alignment=1.0, until=until).result[0]


@pytest.fixture
def blend(graph, files):
    """All three LoRAs and some of the base."""
    return graph.blend(files, "0.5, 0.3, 0.2", alignment=0.8)


@pytest.fixture
def in_two(graph):
    """in_two(first, second, split): two KSampler (Advanced), the second going on with the first's leftover noise."""

    def run(first, second, split, sampler_name="euler"):
        shared = {"noise_seed": 1, "steps": STEPS, "cfg": 7.0, "sampler_name": sampler_name, "scheduler": "normal"}
        shared |= {"positive": graph.positive, "negative": graph.negative}
        start = {"add_noise": "enable", "start_at_step": 0, "end_at_step": split}
        end = {"add_noise": "disable", "start_at_step": split, "end_at_step": 10000}
        node = KSamplerAdvanced()
        (half,) = node.sample(
            first, **shared, **start, latent_image=INPUTS["latent_image"], return_with_leftover_noise="enable"
        )
        (whole,) = node.sample(second, **shared, **end, latent_image=half, return_with_leftover_noise="disable")
        return whole["samples"]

    return run


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_until_1_changes_nothing_bit_for_bit(graph, base, blend, ended, evaluation):
    as_before, with_until = (graph.applied(base, entry, evaluation=evaluation) for entry in (blend, ended(blend, 1.0)))
    assert torch.equal(graph.plain(with_until, **INPUTS), graph.plain(as_before, **INPUTS))


def test_until_0_is_the_base_and_costs_as_much(graph, base, blend, ended):
    assert_equal(graph.blended(base, ended(blend, 0.0), **INPUTS), graph.plain(base, **INPUTS), ROUNDING)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_it_equals_a_blended_sampler_followed_by_one_of_the_base(graph, base, blend, ended, in_two, evaluation):
    result = graph.plain(graph.applied(base, ended(blend), evaluation=evaluation, seed=3), **INPUTS)
    expected = in_two(graph.applied(base, blend, evaluation=evaluation, seed=3), base, KEPT)
    assert_equal(result, expected, ROUNDING)
    whole = graph.plain(graph.applied(base, blend, evaluation=evaluation, seed=3), **INPUTS)
    assert relative_error(result, whole) > 10 * ROUNDING  # two late steps are no large change


def test_with_dpmpp_2m_too_where_the_last_step_is_cut(graph, base, blend, ended, in_two):
    """Its last step looks at no earlier prediction, which the second of two samplers does not know."""
    result = graph.blended(base, ended(blend, 0.8), sampler_name="dpmpp_2m", **INPUTS)
    assert_equal(result, in_two(graph.applied(base, blend), base, STEPS - 1, "dpmpp_2m"), ROUNDING)


@pytest.mark.parametrize(
    ("sampler_name", "steps_of_calls"),
    [("dpmpp_2m", range(STEPS)), ("heun", [0, 0, 1, 1, 2, 2, 3, 3, 4]), ("euler_ancestral", range(STEPS))],
)
def test_it_equals_merged_copies_step_by_step(graph, base, merged, blend, ended, sampler_name, steps_of_calls):
    steps = iter(steps_of_calls)

    def predict(call):
        coefficients = (0.2, 0.4, 0.24, 0.16) if next(steps) < KEPT else (1, 0, 0, 0)
        return sum(c * _apply(network, call) for c, network in zip(coefficients, merged, strict=True) if c)

    expected = graph.plain(_replaced(base, predict), sampler_name=sampler_name, **INPUTS)
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(base, ended(blend), execution, sampler_name=sampler_name, **INPUTS), expected)


def test_msdda_ends_with_the_bases_own_steps(graph, base, blend, ended):
    expected = graph.blended(base, ended(blend), sampler_name="euler_ancestral", **INPUTS)
    assert_equal(graph.msdda(base, ended(blend), **INPUTS), expected)


def test_regions_end_with_the_base_too(graph, nodes, base, blend, files, ended, in_two):
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    other = type(blend)(graph.blend(files, "0, 0.5, 0.5", alignment=1.4).schedule, blend.bases)
    painted = nodes["BlendRegion"].execute(blend=blend, mask=mask, elsewhere=other).result[0]
    expected = in_two(graph.applied(base, painted), base, KEPT)
    assert_equal(graph.blended(base, ended(painted), **INPUTS), expected, ROUNDING)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize(
    ("evaluation", "spent"),
    [
        ("exact", KEPT * 4 + 2),  # three LoRAs and the base, then the base
        ("merged", STEPS),
        ("stratified", STEPS),
        ("random", STEPS),
        ("budget", 4 + (KEPT - 1) + 2),  # a first step of all
    ],
)
def test_a_step_after_the_cut_costs_one_evaluation(graph, base, blend, ended, execution, evaluation, spent):
    rows = []

    def counted(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = base.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counted)
    graph.plain(graph.applied(model, ended(blend), execution, evaluation), **INPUTS)
    assert sum(rows) == spent * 4  # conditional and unconditional of two images
    assert rows[-2:] == [4, 4]


def test_a_job_of_two_samplers_is_cut_by_the_steps_of_both(graph, base, blend, ended, in_two):
    first, second = (graph.applied(base, ended(blend), job_steps=STEPS, start_at_step=start) for start in (0, 2))
    assert_equal(in_two(first, second, 2), graph.blended(base, ended(blend), **INPUTS), ROUNDING)


def test_the_nodes_say_where_the_base_is_alone(graph, nodes, base, blend, ended):
    dial = nodes["KLInterpolate"].execute(blend=blend, alignment=1.0, until=UNTIL)
    assert "; the base alone after 60% of the steps" in dial.ui["text"][0]
    sampler = nodes["BlendedKSampler"].execute(
        model=base, blend=ended(blend), execution="auto", **graph._inputs(INPUTS)
    )
    assert "; the base alone in the last 2 of 5 steps" in sampler.ui["text"][0]


def test_what_would_lose_the_cut_refuses_it(graph, nodes, base, blend, ended):
    slots = {"blend_0": ended(blend), "blend_1": blend}
    with pytest.raises(ValueError, match="until of KL Interpolate is set behind Blend Schedule"):
        nodes["BlendSchedule"].execute(blends=slots, curve="linear")
    with pytest.raises(ValueError, match="set until of KL Interpolate to 1"):
        nodes["SaveBlendAsLoRA"].execute(blend=ended(blend), model=base, filename_prefix="blend", rank=0)


def test_a_schedule_takes_the_cut_behind_it(nodes, blend, ended):
    slots = {"blend_0": blend, "blend_1": blend.aligned(1.5)}
    schedule = nodes["BlendSchedule"].execute(blends=slots, curve="linear").result[0]
    table = ended(schedule).coefficients(STEPS)[0]
    assert torch.equal(table[:KEPT], schedule.coefficients(STEPS)[0][:KEPT])
    assert table[KEPT:].tolist() == [[1, 0, 0, 0]] * 2
