"""Faults at every stage of a run: the base stays bit for bit what it was, and the next prompt works.

`DIFFUSION_BLEND_PROMPTS=1000 python tests/comfyui/run.py -s -k many_prompts` prints the figures of docs/reliability.md.
"""

import logging
import os
import sys

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP

from .families import named
from .family_cases import Case
from .reference import assert_differ, assert_equal, blended_reference
from .traces import Snapshot, alive, resident_bytes

STAGES = [
    getattr(WrappersMP, stage)
    for stage in (
        "OUTER_SAMPLE", "PREPARE_SAMPLING", "SAMPLER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH", "APPLY_MODEL",
        "DIFFUSION_MODEL",
    )
]  # fmt: skip
PROMPTS = int(os.environ.get("DIFFUSION_BLEND_PROMPTS", "200"))


@pytest.fixture(scope="module")
def case(nodes, lora_folder):
    """A small network with fused weights."""
    return Case(named("Flux"), nodes, lora_folder)


@pytest.fixture(scope="module")
def expected(case):
    """The blend of a run without faults."""
    with torch.inference_mode():
        return blended(case, case.model)


@pytest.fixture(autouse=True)
def untouched(case):
    """Whatever a test does, the base is as before."""
    before = Snapshot(case.model)
    yield
    before.assert_same()


def blended(case, model, execution="batched"):
    return case.graph.blended(model, case.blend(1.3), execution, **case.inputs)


def interrupt():
    """What ComfyUI's cancel button does."""
    comfy.model_management.interrupt_current_processing()
    comfy.model_management.throw_exception_if_processing_interrupted()


def fail():
    """An error of somebody else's."""
    raise ValueError("not ours")


def wrapped(model, stage, act, before=True, key="test"):
    """`model` with act() before or after what it does at `stage`."""

    def wrapper(executor, *args, **kwargs):
        if before:
            act()
        result = executor(*args, **kwargs)
        if not before:
            act()
        return result

    clone = model.clone()
    clone.add_wrapper_with_key(stage, key, wrapper)
    return clone


@pytest.mark.parametrize("outermost", [True, False], ids=["around the blend", "inside the blend"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fault", [interrupt, fail])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_any_stage_leaves_nothing_behind(case, expected, stage, fault, before, outermost):
    """Of wrappers the first added is outermost; the network's own lies within the blend's in either case."""
    blend = case.blend(1.3)
    if outermost:
        model = case.graph.applied(wrapped(case.model, stage, fault, before), blend)
    else:
        model = wrapped(case.graph.applied(case.model, blend), stage, fault, before)
    with pytest.raises((InterruptProcessingException, ValueError)):
        case.graph.plain(model, **case.inputs)
    model.remove_wrappers_with_key(stage, "test")
    assert torch.equal(case.graph.plain(model, **case.inputs), expected)


@pytest.mark.parametrize("execution", ["auto", "batched", "sequential"])
def test_models_unloaded_between_two_steps_are_no_fault(case, execution):
    """As a node that frees memory from a callback does."""
    model = wrapped(case.model, WrappersMP.PREDICT_NOISE, comfy.model_management.unload_all_models, before=False)
    assert torch.equal(blended(case, model, execution), blended(case, case.model, execution))


@pytest.mark.parametrize("evaluation", ["exact", "stratified"])
def test_memory_that_runs_out_in_mid_run_changes_no_number(case, caplog, evaluation):
    calls = []

    def crowded(executor, x, *args, **kwargs):
        calls.append(len(x))
        if len(calls) > 1 and len(x) > 4:
            raise torch.OutOfMemoryError("no memory left")
        return executor(x, *args, **kwargs)

    clone = case.model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", crowded)
    alignment = 1.3 if evaluation == "exact" else 0.9
    blend, applied = case.blend(alignment), case.graph.applied
    inputs = {**case.inputs, "steps": 3}
    with caplog.at_level(logging.WARNING):
        result = case.graph.plain(applied(clone, blend, "batched", evaluation), **inputs)
    assert_equal(result, case.graph.plain(applied(case.model, blend, "sequential", evaluation), **inputs))
    warnings = [record for record in caplog.records if "one at a time" in record.getMessage()]
    assert len(warnings) == (evaluation == "exact")  # one variant per step needs no more than a plain run


def test_a_file_that_is_replaced_or_deleted_while_queued_changes_nothing(case, expected, lora_folder):
    blend = case.blend(1.3)
    places = [lora_folder / file for file in case.files]
    contents = [place.read_bytes() for place in places]
    try:
        places[0].write_bytes(b"overwritten by a trainer")
        places[1].unlink()
        assert torch.equal(case.graph.blended(case.model, blend, **case.inputs), expected)
        with pytest.raises(ValueError, match=places[0].name):
            case.blend(1.3)
    finally:
        for place, content in zip(places, contents, strict=True):
            place.write_bytes(content)
    assert torch.equal(blended(case, case.model), expected)


def test_many_prompts_with_changing_weights_let_nothing_grow(case):
    """Every prompt is a graph of its own, as if the user moved a slider; figures of the second half against the first.

    The first prompts are left out: allocators and caches of libraries fill.
    """
    inputs = {**case.inputs, "steps": 1, "cfg": 1.0}

    def prompt(number):
        blend = case.graph.blend(case.files, f"{1 + number % 7}, {1 + number % 5}", alignment=1.0 + number % 3)
        case.graph.blended(case.model, blend, ("auto", "batched", "sequential")[number % 3], **inputs)

    for number in range(PROMPTS // 4):
        prompt(number)
    objects, memory = alive(), resident_bytes()
    for number in range(PROMPTS - PROMPTS // 4):
        prompt(number)
    grown = resident_bytes() - memory
    sys.stdout.write(
        f"\n{PROMPTS} prompts: {grown / 2**20:.1f} MiB more, {sum((alive() - objects).values())} objects\n"
    )
    assert alive() == objects
    assert grown < 32 * 2**20


def test_two_prompts_whose_blends_are_cached_at_once_do_not_mix(case):
    """ComfyUI keeps the outputs of both graphs, and runs either again."""
    blends = [case.blend(1.3), case.graph.blend(case.files[::-1], "0.2, 0.8")]
    models = [case.graph.applied(case.model, blend) for blend in blends]
    first = [case.graph.plain(model, **case.inputs) for model in models]
    assert_differ(*first)
    for i in (1, 0, 0, 1):
        assert torch.equal(case.graph.plain(models[i], **case.inputs), first[i])
    reference = blended_reference(case.model, case.networks[::-1][:2], (0.2, 0.8))
    assert_equal(first[1], case.graph.plain(reference, **case.inputs))
