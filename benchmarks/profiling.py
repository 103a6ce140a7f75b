"""Where the time of a step goes: kernels, launches and their time, of the plain sampler and of two ways to blend.

Run with a ComfyUI's own Python (`python benchmarks/run.py profiling`), on a GPU where there is one. Prints, per way,
launches per step, the GPU's busy time next to the wall clock's, and the kernels that take the most.
"""

from __future__ import annotations

import argparse
import importlib

import torch
from cost import PACK, load_host

WAYS = ("plain", "stratified", "exact, one batch")
LISTED = 14  # kernels


def main() -> None:
    """Profile every way once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="SDXL", choices=("SD 1.5", "SDXL"))
    parser.add_argument("--size", default="real", choices=("real", "small"))
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    load_host()
    networks, modes = (importlib.import_module(f"{PACK}.benchmarks.costs.{name}") for name in ("networks", "modes"))
    shape = networks.SHAPES[arguments.network]
    shape = shape.small() if arguments.size == "small" else shape
    network = networks.build(shape, getattr(torch, arguments.dtype), shape.latent)
    sampling, loras = networks.SamplerSettings(arguments.steps, 7.0), [network.lora(seed, 8) for seed in range(2)]
    for way in WAYS:
        make = (lambda *_: modes.plain(network, sampling)) if way == "plain" else modes.MODES[way]
        profile(way, make(network, sampling, loras).run, arguments.steps, network.device)


def profile(way: str, run, steps: int, device: torch.device) -> None:
    """Print what one run of `steps` steps spends, after one that warms up."""
    from torch.profiler import ProfilerActivity

    run()
    run()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    events = profiler.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    launched = kernels or [event for event in events if event.name.startswith("aten::")]
    busy = sum(event.device_time if kernels else event.self_cpu_time_total for event in launched) / 1000
    spent = (max(event.time_range.end for event in events) - min(event.time_range.start for event in events)) / 1000
    print(f"-- {way}: {len(launched) / steps:.0f} {'kernels' if kernels else 'operations'} per step, busy "
          f"{busy / steps:.2f} ms of {spent / steps:.2f} ms per step (under the profiler)", flush=True)  # fmt: skip
    table = profiler.key_averages().table(
        sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total", row_limit=LISTED, max_name_column_width=60
    )
    print("\n".join(line for line in table.splitlines() if line.strip()), flush=True)


if __name__ == "__main__":
    main()
