"""Measuring the modes of one network in turn, each beside a plain run."""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import comfy.model_management
import comfy.utils
import comfyui_version
import torch
from tqdm import tqdm

from . import clock
from .floors import Floors, Machine, adapter_work, network_work, watched
from .modes import COPIES, MODES, ON_A_CARD, Mode, State, plain
from .networks import SHAPES, Network, SamplerSettings, build

DEFAULTS = {
    "cuda": {"size": "real", "dtypes": ["float16", "bfloat16"], "steps": 20, "rewards": [2, 3, 4], "rounds": 5},
    "cpu": {"size": "small", "dtypes": ["float32"], "steps": 3, "rewards": [2, 4], "rounds": 3},
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
    ways: list[str] | None = None  # None: all


@dataclass(frozen=True)
class Timing:
    """What one mode took: seconds, and ratios to the plain run next to it, by round.

    peak: bytes on a GPU.  busy: the time of its kernels, over that of the plain run's.
    """

    seconds: list[float]
    ratios: list[float]
    peak: int | None
    busy: float | None


@dataclass(frozen=True)
class Bench:
    """One network, what its passes need at least, and what this machine can."""

    network: Network
    settings: Settings
    floors: Floors
    machine: Machine

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, settings: Settings) -> Bench:
        """The bench of the shape `name`."""
        shape = SHAPES[name].small() if settings.size == "small" else SHAPES[name]
        settings = replace(settings, latent=settings.latent or shape.latent)
        network = build(shape, dtype, settings.latent)
        return cls(network, settings, floors_of(network, settings), Machine.measured(network.device, dtype))

    @property
    def sampling(self) -> SamplerSettings:
        """How every mode makes an image."""
        return SamplerSettings(self.settings.steps, self.settings.cfg)

    def modes(self, loras: Sequence[State]) -> dict[str, Mode]:
        """All ways to sample these LoRAs' blend that the settings allow."""
        left_out = {COPIES} if len(loras) > self.settings.copies else set()
        left_out |= set() if self.network.device.type == "cuda" else set(ON_A_CARD)
        chosen = {name: MODES[name] for name in self.settings.ways or MODES if name not in left_out}
        return {name: make(self.network, self.sampling, loras) for name, make in chosen.items()}

    def facts(self) -> dict:
        """What all rows share."""
        return {
            "dtype": str(self.network.dtype).removeprefix("torch."),
            **_surroundings(self.network.device),
            "settings": asdict(self.settings),
            "base_bytes": self.network.bytes,
            "pass": {"network": asdict(self.floors.network), "adapter": asdict(self.floors.adapter)},
            "rates": asdict(self.machine),
        }

    def row(self, name: str, m: int, mode: Mode, timing: Timing) -> dict:
        """What a mode took, next to what it needs."""
        network, steps = self.network, self.settings.steps
        floors = self.floors if mode.low_rank else Floors(self.floors.network)
        work, base = floors.work(mode.passes()), self.floors.network.times(steps)
        seconds, floor = statistics.median(timing.seconds), floors.seconds(mode.passes(), self.machine)
        return {
            "mode": name,
            "m": m,
            "seconds": seconds,
            "ratio": statistics.median(timing.ratios),
            "lowest": min(timing.ratios),
            "highest": max(timing.ratios),
            "multiply_adds_ratio": work.multiply_adds / base.multiply_adds,
            "bytes_ratio": work.bytes / base.bytes,
            "floor_seconds": floor,
            "floor_ratio": floor / (steps * self.machine.seconds(self.floors.network)),
            "left": seconds / floor,
            "busy": timing.busy,
            "peak_bytes": timing.peak,
            "held_share": mode.held() / network.bytes,
            "held_share_floor": m * self.floors.adapter.bytes / network.bytes,
        }


def sections(networks: Sequence[str], dtypes: Sequence[str], settings: Settings) -> Iterator[dict]:
    """What was measured of each network and dtype, again after every way."""
    comfy.utils.PROGRESS_BAR_ENABLED = False
    for name in networks:
        for dtype in dtypes:
            bench = Bench.of(name, getattr(torch, dtype), settings)
            yield from ({"network": name, **bench.facts(), "rows": rows} for rows in growing_rows(bench))
            del bench
            _unload()


def growing_rows(bench: Bench) -> Iterator[list[dict]]:
    """The rows so far, the plain sampler's first, after every way: a run that is cut keeps what it measured."""
    device, settings = bench.network.device, bench.settings
    loras = [bench.network.lora(seed, settings.rank) for seed in range(max(settings.rewards))]
    base, rows = plain(bench.network, bench.sampling), []
    baseline = Timing([], [1.0], clock.peak(base.run, device), clock.busy(base.run, device))
    for m in settings.rewards:
        modes = bench.modes(loras[:m])
        for name in tqdm(list(modes), desc=f"ways, m = {m}"):
            mode = modes.pop(name)
            rows.append(bench.row(name, m, mode, _timing(mode, base, baseline, settings.rounds, device)))
            yield [bench.row("plain sampler", 0, base, replace(baseline, busy=baseline.busy and 1.0)), *rows]
            del mode
            _unload()


def floors_of(network: Network, settings: Settings) -> Floors:
    """The work of one pass, from one step of the plain sampler."""
    adapted = network.adapted()
    with watched(adapted) as positions:
        base = network_work(lambda: network.sample(SamplerSettings(1, settings.cfg)), network.bytes)
    return Floors(base, adapter_work(adapted, positions, settings.rank, network.dtype.itemsize))


def _timing(mode: Mode, base: Mode, baseline: Timing, rounds: int, device: torch.device) -> Timing:
    """What a mode took; the seconds of the plain runs next to it are added to `baseline`."""
    busy = baseline.busy and clock.busy(mode.run, device) / baseline.busy
    timing = Timing([], [], clock.peak(mode.run, device), busy)
    for way in (base, mode):
        way.run()  # loads weights and fills caches
    for _ in range(rounds):  # next to every run: what else the machine does changes by the second
        baseline.seconds.append(clock.seconds(base.run, device))
        timing.seconds.append(clock.seconds(mode.run, device))
        timing.ratios.append(timing.seconds[-1] / baseline.seconds[-1])
    return timing


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
