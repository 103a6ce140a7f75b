"""The least work that a way of sampling needs, from the shapes of the network, and the least time it takes a machine.

    pass of v variants = v * (network + low-rank factors) multiply-adds;  weights once + v * factors bytes
    floor              = sum over passes of max(multiply-adds / matmul rate, bytes / copy rate)

Bytes are those of weights and factors: what activations move comes on top, so the floor is low, and nothing in it
depends on how a way is written. The rates are measured; see Machine.measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from . import clock

TRIES = 20  # the best counts: a floor is what the machine can, not what it did while others used it
SIDES = {"cuda": 8192, "cpu": 2048}  # of the square matrices multiplied
COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes, beyond any cache


@dataclass(frozen=True)
class Work:
    """multiply_adds: of matrices, convolutions and attention.  bytes: of weights that are read."""

    multiply_adds: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def times(self, count: int) -> Work:
        """The work of `count` passes."""
        return Work(self.multiply_adds * count, self.bytes * count)


@dataclass(frozen=True)
class Passes:
    """`count` passes of a run, each of which holds `variants` variants of the call.

    adapters: whose factors a variant has, more than one where LoRAs are merged.
    """

    count: int
    variants: int = 1
    adapters: int = 1


@dataclass(frozen=True)
class Machine:
    """multiply_adds, bytes: per second, at one dtype."""

    multiply_adds: float
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        """The fastest of some products of large square matrices, and of some copies (bytes read plus written)."""
        side, count = SIDES[device.type], COPIED[device.type] // dtype.itemsize
        left, right, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        source, target = (torch.zeros(count, dtype=dtype, device=device) for _ in range(2))
        with torch.inference_mode():
            multiplying = min(clock.seconds(lambda: torch.mm(left, right, out=product), device) for _ in range(TRIES))
            copying = min(clock.seconds(lambda: target.copy_(source), device) for _ in range(TRIES))
        return cls(side**3 / multiplying, 2 * COPIED[device.type] / copying)

    def seconds(self, work: Work) -> float:
        """The least time for `work`: either rate alone."""
        return max(work.multiply_adds / self.multiply_adds, work.bytes / self.bytes)


@dataclass(frozen=True)
class Floors:
    """One pass: network, the base's work in it; adapter, what the factors of one basis add."""

    network: Work
    adapter: Work = Work()

    def one(self, passes: Passes) -> Work:
        """The work of one pass: the base's weights are read once."""
        factors = passes.variants * passes.adapters
        multiply_adds = passes.variants * self.network.multiply_adds + factors * self.adapter.multiply_adds
        return Work(multiply_adds, self.network.bytes + factors * self.adapter.bytes)

    def work(self, run: Iterable[Passes]) -> Work:
        """The work of a run."""
        return sum((self.one(passes).times(passes.count) for passes in run), Work())

    def seconds(self, run: Iterable[Passes], machine: Machine) -> float:
        """The least time of a run."""
        return sum(passes.count * machine.seconds(self.one(passes)) for passes in run)


def scheduled(evaluations: int, steps: int, m: int, execution: str) -> tuple[Passes, ...]:
    """The passes of a run of `steps` steps that evaluates `evaluations` variants, one or all m of them at a step."""
    if execution == "sequential":
        return (Passes(evaluations),)
    full = (evaluations - steps) // (m - 1)
    return tuple(passes for passes in (Passes(full, m), Passes(steps - full)) if passes.count)


def factor_elements(shape: Sequence[int], rank: int) -> int:
    """Elements of a layer's two factors; shape: (out, in, ...), its weight's."""
    return rank * (math.prod(shape[1:]) + shape[0])


def network_work(call: Callable[[], object], stored: int) -> Work:
    """The work of call(), one pass of a network whose weights take `stored` bytes."""
    return Work(counted(call), stored)


def adapter_work(modules: Mapping[str, nn.Module], positions: Mapping[str, int], rank: int, itemsize: int) -> Work:
    """What factors of `rank` on these modules add to a pass.

    positions: see `watched`. Every element of a factor is multiplied once per position of the layer's output.
    """
    elements = {name: factor_elements(module.weight.shape, rank) for name, module in modules.items()}
    return Work(sum(elements[name] * positions[name] for name in modules), sum(elements.values()) * itemsize)


@contextmanager
def watched(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    """While open, counts where each layer's output is computed: rows times tokens or pixels, by name."""
    positions = dict.fromkeys(modules, 0)

    def watch(name):
        def count(module, inputs, output):
            positions[name] += output.numel() // module.weight.shape[0]

        return count

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        yield positions
    finally:
        for handle in handles:
            handle.remove()


def counted(call: Callable[[], object]) -> int:
    """Multiply-adds of call()."""
    # torch's table lacks these, and would count them as nothing.
    lacking = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten.addmm_: _product,
    }
    with FlopCounterMode(display=False, custom_mapping=lacking) as counter:
        call()
    return counter.get_total_flops() // 2


def _product(out, left, right, *args, out_shape=None, **kwargs) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)
