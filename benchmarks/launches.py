"""How many operations a step launches, which is what a fast card waits for at batch 1; no card is needed to count.

Run with a ComfyUI's own Python (`python benchmarks/run.py launches`): small networks of SD 1.5's and SDXL's shape, all
attention projections adapted by m LoRAs. Counted is every operation of torch but views and allocations, as the
difference between 8 and 4 steps, so that what a run does once does not count. Writes the tables of docs/costs.md.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from cost import NAMES, OUT, PACK, PAGE, load_host
from torch.utils._python_dispatch import TorchDispatchMode

FREE = {"empty", "empty_strided", "empty_like", "detach", "alias", "lift_fresh", "resize_", "set_"}
WAYS = ("exact, one batch", "exact, one after another", "merged", "stratified", "budget 1.1")


class Launches(TorchDispatchMode):
    """While open, counts operations that a device would be asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.read_back = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name in FREE)
        self.read_back += name in ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")
        return func(*args, **(kwargs or {}))


def per_step(run: Callable[[int], object]) -> tuple[float, float]:
    """(launches, values read back) of one step; run(steps) samples."""
    run(4)  # learns which layers share an input
    counts = []
    for steps in (4, 8):
        with Launches() as launches:
            run(steps)
        counts.append((launches.count, launches.read_back))
    return tuple((more - fewer) / 4 for fewer, more in zip(*counts, strict=True))


def rows(name: str, rewards: list[int], networks: ModuleType, modes: ModuleType) -> list[tuple]:
    """(way, m, launches, times plain, more per adapted layer, values read back) of one network."""
    shape = networks.SHAPES[name].small()
    network = networks.build(shape, torch.float32, shape.latent)
    layers = len(network.adapted())
    plain, read_back = per_step(lambda steps: modes.plain(network, networks.SamplerSettings(steps, 7.0)).run())
    table = [("plain sampler", "", plain, 1.0, 0.0, read_back)]
    for m in rewards:
        loras = [network.lora(seed, 8) for seed in range(m)]
        for way in WAYS:
            make, settings = modes.MODES[way], networks.SamplerSettings
            count, read = per_step(lambda steps, make=make: make(network, settings(steps, 7.0), loras).run())  # noqa: B023
            table.append((way, m, count, count / plain, (count - plain) / layers, read))
    return table


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rewards", type=int, nargs="+", default=[2, 3])
    arguments = parser.parse_args()
    load_host()
    import comfyui_version

    names = ("networks", "modes", "figures", "report")
    networks, modes, figures, report = (importlib.import_module(f"{PACK}.benchmarks.costs.{name}") for name in names)
    kept = figures.Figures.of(OUT, PAGE)
    for name in arguments.networks:
        versions = {"torch": torch.__version__, "comfyui": comfyui_version.__version__}
        counted = {**versions, "rows": rows(name, arguments.rewards, networks, modes)}
        kept.add_launches(name, counted)
        print(report.launches_text((name, counted)), flush=True)


if __name__ == "__main__":
    main()
