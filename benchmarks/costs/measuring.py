"""Measuring the modes of one network in turn, each beside a plain run."""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import comfy.model_management
import comfy.utils
import comfyui_version
import torch
from tqdm import tqdm

from . import clock
from .floors import Floors, Machine, Passes, adapter_work, factor_elements, network_work, watched
from .modes import COPIES, MODES, Mode, plain
from .networks import SHAPES, Network, Sampling, build

DEFAULTS = {
    "cuda": {"size": "real", "dtypes": ["float16", "bfloat16"], "steps": 20, "rounds": 5},
    "cpu": {"size": "small", "dtypes": ["float32"], "steps": 4, "rounds": 3},
}
"""By kind of device, what the command line leaves open."""


@dataclass(frozen=True)
class Settings:
    """size: real or small.  latent: its side, None for the shape's own.  copies: the most whole networks to hold."""

    size: str
    latent: int | None
    steps: int
    cfg: float
    rounds: int
    rewards: list[int]
    copies: int
    rank: int


@dataclass(frozen=True)
class Taken:
    """What one mode took: seconds and ratios to the plain run beside it, by round."""

    seconds: list[float]
    ratios: list[float]
    peak: int | None


def sections(networks: list[str], dtypes: list[str], settings: Settings) -> Iterator[dict]:
    """What was measured of each network and dtype, again after every number of rewards."""
    comfy.utils.PROGRESS_BAR_ENABLED = False
    for name in networks:
        for dtype in dtypes:
            yield from _sections_of(name, getattr(torch, dtype), settings)
            _unload()


def _sections_of(name: str, dtype: torch.dtype, settings: Settings) -> Iterator[dict]:
    shape = SHAPES[name].small() if settings.size == "small" else SHAPES[name]
    network = build(shape, dtype, settings.latent or shape.latent)
    settings, sampling = (
        replace(settings, latent=network.latent["samples"].shape[-1]),
        Sampling(settings.steps, settings.cfg),
    )
    machine, floors = Machine.measured(network.device, dtype), floors_of(network, settings)
    loras = [network.lora(seed, settings.rank) for seed in range(max(settings.rewards))]
    beside = plain(network, sampling)
    facts = {
        "network": name,
        "dtype": str(dtype).removeprefix("torch."),
        **_surroundings(network.device),
        "settings": asdict(settings),
        "base_bytes": network.bytes,
        "pass": {"network": asdict(floors.network), "adapter": asdict(floors.adapter)},
        "rates": asdict(machine),
    }
    plain_seconds, rows = [], []
    for m in settings.rewards:
        modes = {
            mode: make(network, sampling, loras[:m])
            for mode, make in MODES.items()
            if mode != COPIES or m <= settings.copies
        }
        taken, seconds = measured(beside, modes, settings.rounds, network.device)
        plain_seconds += seconds
        rows += [_row(mode, m, modes[mode], taken[mode], network, floors, machine, settings) for mode in modes]
        modes.clear()
        _unload()
        alone = Taken(plain_seconds, [1.0], clock.peak(beside.run, network.device))
        yield {**facts, "rows": [_row("plain sampler", 0, beside, alone, network, floors, machine, settings), *rows]}


def floors_of(network: Network, settings: Settings) -> Floors:
    """The work of one pass, from one step of the plain sampler."""
    adapted = network.adapted()
    with watched(adapted) as positions:
        base = network_work(lambda: network.sample(Sampling(1, settings.cfg)), network.bytes)
    return Floors(base, adapter_work(adapted, positions, settings.rank, network.dtype.itemsize))


def measured(
    beside: Mode, modes: Mapping[str, Mode], rounds: int, device: torch.device
) -> tuple[dict[str, Taken], list[float]]:
    """What each mode took, and the seconds of every plain run."""
    peaks = {}
    for name, mode in modes.items():
        _unload()  # a peak of this mode alone
        peaks[name] = clock.peak(mode.run, device)
    for mode in (beside, *modes.values()):
        mode.run()  # loads weights and fills caches
    taken = {name: Taken([], [], peaks[name]) for name in modes}
    plain_seconds = []
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, mode in modes.items():
            # Beside every mode: what else the machine does changes by the second.
            plain_seconds.append(clock.seconds(beside.run, device))
            taken[name].seconds.append(clock.seconds(mode.run, device))
            taken[name].ratios.append(taken[name].seconds[-1] / plain_seconds[-1])
    return taken, plain_seconds


def _row(
    name: str, m: int, mode: Mode, taken: Taken, network: Network, floors: Floors, machine: Machine, settings: Settings
) -> dict:
    own = floors if mode.low_rank else Floors(floors.network)
    once, work = floors.network.times(settings.steps), own.work(mode.passes())
    seconds, floor = statistics.median(taken.seconds), own.seconds(mode.passes(), machine)
    elements = sum(factor_elements(module.weight.shape, settings.rank) for module in network.adapted().values())
    return {
        "mode": name,
        "m": m,
        "seconds": seconds,
        "ratio": statistics.median(taken.ratios),
        "lowest": min(taken.ratios),
        "highest": max(taken.ratios),
        "multiply_adds_ratio": work.multiply_adds / once.multiply_adds,
        "bytes_ratio": work.bytes / once.bytes,
        "floor_seconds": floor,
        "floor_ratio": floor / floors.seconds([Passes(settings.steps)], machine),
        "left": seconds / floor,
        "peak_bytes": taken.peak,
        "held_share": mode.held() / network.bytes,
        "held_share_floor": m * elements * network.dtype.itemsize / network.bytes,
    }


def _unload() -> None:
    """Let go of every model on the device and of those nobody holds any more."""
    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def _surroundings(device: torch.device) -> dict:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "machine": gpu or f"CPU ({platform.machine()}, threads: {torch.get_num_threads()})",
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
    }
