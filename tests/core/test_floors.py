"""The benchmark's floors: what it counts from shapes, against numbers made by hand and against what torch counts."""

import pytest
import torch
from diffusion_blend.benchmarks.costs.floors import (
    Floors,
    Machine,
    Passes,
    Work,
    adapter_work,
    counted,
    network_work,
    scheduled,
    watched,
)
from diffusion_blend.blend_core import LoRABank, Target
from diffusion_blend.blend_core.adapters import Change, Factors
from torch import nn

RANK = 4
# A layer, its input, the positions of its output, the base's multiply-adds, and the elements of its two factors.
LAYERS = {
    "linear": (nn.Linear(16, 32), (2, 5, 16), 2 * 5, 2 * 5 * 16 * 32, 4 * (16 + 32)),
    "convolution": (
        nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 6, 6), 2 * 3 * 3, 2 * 3 * 3 * (8 * 9) * 12, 4 * (8 * 9 + 12),
    ),
}  # fmt: skip


@pytest.fixture(params=LAYERS)
def layer(request):
    module, shape, *expected = LAYERS[request.param]
    return nn.ModuleDict({"layer": module}), torch.randn(shape), expected


def watched_call(network, x):
    modules = {"layer": network["layer"]}
    with watched(modules) as positions:
        base = network_work(lambda: network["layer"](x), stored=100)
    return base, adapter_work(modules, positions, RANK, itemsize=2), positions


def test_one_layer_is_counted_as_by_hand(layer):
    network, x, (positions, multiply_adds, elements) = layer
    base, adapter, seen = watched_call(network, x)
    assert seen == {"layer": positions}
    assert base == Work(multiply_adds, 100)
    assert adapter == Work(positions * elements, 2 * elements)


def test_a_bank_does_what_the_floor_says_and_no_more(layer):
    network, x, _ = layer
    module = network["layer"]
    shape = tuple(module.weight.shape)
    down, up = torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK)
    attachment = LoRABank([{Target("layer", shape): Change(Factors(down, up, 1.0))}]).attach(network)
    base, adapter, _ = watched_call(network, x)
    with attachment.using([1, 1]):
        assert counted(lambda: module(x)) == base.multiply_adds + adapter.multiply_adds


def test_attention_counts_on_a_cpu():
    query, key = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 5, 8)
    with torch.inference_mode():
        seen = counted(lambda: nn.functional.scaled_dot_product_attention(query, key, key))
    assert seen == 2 * (2 * 6 * 5 * 8)  # heads * (queries with keys, and weights with values)


def test_a_batch_reads_the_weights_once_and_passes_read_them_each():
    floors = Floors(Work(1000, 400), Work(10, 4))
    assert floors.work([Passes(6)]) == Work(6 * 1010, 6 * 404)
    assert floors.work([Passes(2, variants=3)]) == Work(6 * 1010, 2 * 412)


def test_the_least_time_is_that_of_the_slower_rate_in_every_pass():
    floors = Floors(Work(1000, 400), Work(10, 4))
    machine = Machine(multiply_adds=1000.0, bytes=200.0)
    assert floors.seconds([Passes(5)], machine) == pytest.approx(5 * 404 / 200)
    assert floors.seconds([Passes(5, variants=3)], machine) == pytest.approx(5 * 3030 / 1000)


def test_a_run_is_split_into_full_steps_and_others():
    assert scheduled(60, 20, 3, "sequential") == (Passes(60),)
    assert scheduled(60, 20, 3, "batched") == (Passes(20, 3),)
    assert scheduled(22, 20, 3, "batched") == (Passes(1, 3), Passes(19))
