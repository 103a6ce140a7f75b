"""Time and peak memory of a call: CUDA's own events and counters on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Run = Callable[[], object]


def seconds(run: Run, device: torch.device) -> float:
    """How long run() takes, what it queues on the GPU included."""
    return _SECONDS[device.type](run)


def peak(run: Run, device: torch.device) -> int | None:
    """The most bytes that tensors take during run(); None on a CPU, where nothing counts them."""
    return _PEAKS[device.type](run)


def busy(run: Run, device: torch.device) -> float | None:
    """How long a GPU's kernels take in run(), in seconds; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = (event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return sum(event.device_time for event in events) / 1e6  # from microseconds


def _seconds_on_cuda(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000  # from milliseconds


def _seconds_on_cpu(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak_on_cuda(run: Run) -> int:
    run()  # loads weights and fills caches, whose temporaries do not count
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


_SECONDS = {"cuda": _seconds_on_cuda, "cpu": _seconds_on_cpu}
_PEAKS = {"cuda": _peak_on_cuda, "cpu": lambda run: None}
