"""The model a blend is built on stays as it was, whatever happens during sampling."""

import gc

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from .reference import assert_differ
from .traces import Snapshot


@pytest.fixture(autouse=True)
def untouched(base):
    """After each test: every weight of the base is bit for bit what it was, and no module carries a forward."""
    before = Snapshot(base)
    yield
    before.assert_same()


def during(model, call: int, act):
    """`model` with act() happening inside the network's `call`-th evaluation (the first is 1), deltas installed."""
    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append(len(calls))
        if len(calls) == call:
            act()
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return clone


def interrupt():
    """What ComfyUI's cancel button does."""
    comfy.model_management.interrupt_current_processing()
    comfy.model_management.throw_exception_if_processing_interrupted()


def fail():
    """An error of somebody else's, inside the network."""
    raise ValueError("not ours")


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_a_plain_run_after_a_blended_one_is_bit_identical(graph, base, files, plain, execution):
    result = graph.blended(base, graph.blend(files), execution)
    assert_differ(result, plain)
    assert torch.equal(graph.plain(base), plain)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_an_interrupt_in_mid_run_leaves_nothing_behind(graph, base, files, plain, execution):
    blend = graph.blend(files)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        graph.blended(during(base, 2, interrupt), blend, execution)
    assert torch.equal(graph.plain(base), plain)
    assert_differ(graph.blended(base, blend, execution), plain)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_an_error_in_mid_run_leaves_nothing_behind(graph, base, files, plain, execution):
    applied = graph.applied(during(base, 2, fail), graph.blend(files), execution)
    with pytest.raises(ValueError, match="not ours"):
        graph.plain(applied)
    assert torch.equal(graph.plain(base), plain)


def test_a_model_that_failed_once_samples_again(graph, base, files):
    applied = graph.applied(during(base, 2, interrupt), graph.blend(files))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        graph.plain(applied)
    assert torch.equal(graph.plain(applied), graph.plain(graph.applied(base, graph.blend(files))))


def test_two_blends_of_one_base_used_in_turn_do_not_mix(graph, base, files, plain):
    one = graph.applied(base, graph.blend(files[:2], "0.8, 0.2"))
    other = graph.applied(base, graph.blend(files[1:], "0.5, 0.5"), "sequential")
    first, second = graph.plain(one), graph.plain(other)
    assert_differ(first, second)
    assert torch.equal(graph.plain(base), plain)
    assert torch.equal(graph.plain(one), first)
    assert torch.equal(graph.plain(other), second)


def test_dropping_clones_in_mid_run_changes_nothing(graph, base, files):
    blend = graph.blend(files)
    expected = graph.blended(base, blend)
    spare = [graph.applied(base, blend).clone()]
    graph.plain(spare[0])

    def drop():
        spare.append(spare[0].clone())
        spare.clear()
        gc.collect()

    assert torch.equal(graph.blended(during(base, 2, drop), blend), expected)


def test_a_clone_of_a_blended_model_is_blended(graph, base, files):
    model = graph.applied(base, graph.blend(files))
    expected = graph.plain(model)
    clone = model.clone()
    del model
    gc.collect()
    assert torch.equal(graph.plain(clone), expected)


def test_no_copy_of_the_factors_outlives_a_run(graph, base, files):
    applied, copies = graph.applied(base, graph.blend(files)), []
    (factors,) = applied.get_additional_models_with_key("diffusion_blend")

    def count():
        copies.append(sum(layer._placed is not None for layer in factors.model.low_rank))

    watched = during(applied, 2, count)
    graph.plain(watched)
    count()
    assert copies[0] > 0 == copies[1]


def tensors():
    """The tensors that live, by their place in memory; those of a plan, which can be asked for later, are small."""
    gc.collect()
    living = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))
    return {id(tensor): tensor for tensor in living if tensor.numel() > 32}


@pytest.mark.parametrize("evaluation", ["exact", "stratified", "budget"])
def test_no_tensor_of_a_run_outlives_it(graph, base, files, evaluation):
    """A compiler's memory of a run's tensors is given back when the run ends; whoever keeps one would read others."""
    first = graph.applied(base, graph.blend(files, "0.5, 0.3, 0.2"), evaluation=evaluation, budget=1.6)
    other = graph.applied(base, graph.blend(files, "0.1, 0.2, 0.7"), evaluation=evaluation, budget=1.6)
    for model in (first, other, first):  # loaded, and everything that ComfyUI keeps is there
        graph.plain(model, steps=4)
    before = tensors()
    for model in (first, other, first):
        graph.plain(model, steps=4)
    left = {place: tensor for place, tensor in tensors().items() if place not in before}
    assert not left, [tuple(tensor.shape) for tensor in left.values()]
