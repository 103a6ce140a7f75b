"""Blend Schedule inside ComfyUI: constant schedules change nothing, others equal merged copies step by step."""

import pytest
import torch

from .reference import _apply, _replaced, assert_differ, assert_equal

STEPS = 5


@pytest.fixture
def schedule(nodes):
    def make(*blends, curve="linear", positions=""):
        slots = {f"blend_{i}": blend for i, blend in enumerate(blends)}
        return nodes["BlendSchedule"].execute(blends=slots, curve=curve, positions=positions).result[0]

    return make


@pytest.fixture
def keyframes(graph, files):
    """Two blends over the same three loaded LoRAs."""
    first = graph.blend(files, "0.6, 0.4, 0")
    again = graph.blend(files, "0, 0.2, 0.8", alignment=0.9)
    return first, type(again)(again.schedule, first.bases)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_a_constant_schedule_is_no_schedule_bit_for_bit(graph, base, schedule, keyframes, execution):
    first, _ = keyframes
    assert torch.equal(graph.blended(base, schedule(first, first), execution), graph.blended(base, first, execution))


@pytest.mark.parametrize("curve", ["linear", "smooth", "step"])
def test_a_schedule_equals_merged_copies_step_by_step(graph, base, merged, schedule, keyframes, curve):
    blend = schedule(*keyframes, curve=curve, positions="0.1, 0.5")
    table, calls = blend.schedule.coefficients(STEPS), iter(range(STEPS))
    assert not torch.equal(table[0], table[-1])

    def predict(call):
        coefficients = table[next(calls)].tolist()
        return sum(c * _apply(network, call) for c, network in zip(coefficients, merged, strict=True) if c != 0)

    expected = graph.plain(_replaced(base, predict), steps=STEPS)
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(base, blend, execution, steps=STEPS), expected)
    assert_differ(graph.blended(base, keyframes[0], steps=STEPS), expected)


def test_blends_of_unlike_loras_are_joined(graph, nodes, base, files, schedule):
    def blend_of(lora):
        return nodes["BlendWeights"].execute(loras={"lora_0": lora}, weights="1", normalise=True).result[0]

    both = graph.blend(files[:2], "0.5, 0.5")
    first, second = (blend_of(lora) for lora in both.bases)
    joined = schedule(first, second, curve="step", positions="0, 0.5")
    assert joined.names == ("r0", "r1")
    assert joined.schedule.coefficients(4).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_stratified_evaluation_follows_a_schedule(graph, base, files, schedule, keyframes):
    first, second = keyframes
    _, choices = graph.stochastic(base, schedule(first, second, curve="step", positions="0, 0.5"), steps=6)
    assert set(choices[0, :3].tolist()) <= {1, 2} and 3 in choices[0, 3:].tolist()


def test_msdda_follows_a_schedule(graph, base, nodes, schedule, keyframes):
    blend = schedule(*keyframes)
    sampling = {name: value for name, value in graph._inputs({"steps": STEPS}).items() if name != "sampler_name"}
    fused = nodes["MSDDAKSampler"].execute(model=base, blend=blend, execution="auto", etas="1, 1, 1", **sampling)
    expected = graph.blended(base, blend, sampler_name="euler_ancestral", steps=STEPS)
    assert_equal(fused.result[0]["samples"], expected)


def test_kl_interpolate_scales_every_keyframe(nodes, schedule, keyframes):
    blend = schedule(*keyframes)
    (half,) = nodes["KLInterpolate"].execute(blend=blend, alignment=0.5).result
    torch.testing.assert_close(half.schedule.coefficients(4)[:, 1:], blend.schedule.coefficients(4)[:, 1:] / 2)


def test_schedules_that_cannot_be_are_refused(schedule, keyframes):
    with pytest.raises(ValueError, match="3 positions came for 2 blends"):
        schedule(*keyframes, positions="0, 0.5, 1")
    with pytest.raises(ValueError, match="a schedule, a window or a region came where"):
        schedule(schedule(*keyframes), keyframes[0])
