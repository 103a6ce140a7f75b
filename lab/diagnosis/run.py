"""Diagnosing a request: the blend sampled with every prediction recorded, then the base model's posterior probed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ...blend_core import Adapter, BlendError, LoRABank, merged, read_adapter
from ...blend_core.diagnostics import (
    Diagnosis,
    Disagreement,
    Gap,
    disagreement,
    gap_at,
    posterior_samples,
    probed_steps,
)
from ...blend_core.gaussian import reverse_step
from ...blend_core.pictures.diagnosis import draw
from ...blend_core.rewards import Library, Rescaled, Reward, Scale, load_reward
from ...pipelines import Sampling, load_base, match
from ...trainers.model.base import Base
from ...trainers.places import stated_reward
from ...trainers.seeding import ImageNoise, stream
from ...trainers.settings.config import SamplingSettings
from ..generation.record import Request, place, write
from ..generation.run import blend_of, check, dtype_of


@dataclass(frozen=True)
class Probe:
    """What is probed. rewards: label of a reward LoRA -> name of a reward.  kl_weight: where its file states none."""

    rewards: dict[str, str] = field(default_factory=dict)
    kl_weight: float | None = None
    samples: int = 32
    steps: int = 3

    @classmethod
    def of(cls, options: Sequence[str], labels: Sequence[str], kl_weight, samples: int, steps: int) -> Probe:
        """From options such as pickscore=beautiful. Raises BlendError for a label that is not there, or twice."""
        rewards = {}
        for option in options:
            name, _, label = option.rpartition("=")
            if not name or label not in labels or label in rewards:
                raise BlendError(
                    f"--reward-model is {option!r}, expected REWARD=NAME, once per reward LoRA, with NAME one of "
                    f"{', '.join(labels) or 'the --reward names'}: pickscore={labels[0] if labels else 'beautiful'}."
                )
            rewards[label] = name
        return cls(rewards, kl_weight, samples, steps)

    def kl_weight_of(self, label: str, adapter: Adapter) -> float:
        """The KL weight it was trained with. Raises BlendError where none is known."""
        stated = adapter.kl_weight or self.kl_weight
        if stated is None:
            raise BlendError(
                f"{adapter.path} ({label}) does not state the KL weight it was trained with, which the probe needs. "
                "Give it with --kl-weight, or leave --reward-model out."
            )
        return stated


def run(request: Request, probe: Probe, library: Library, out: Path) -> Diagnosis:
    """Diagnose, and write diagnosis.json and diagnosis.png into `out`.

    Raises BlendError for input that cannot be used, before any model is loaded where that can be known.
    """
    check(request)
    labels = list(request.rewards)
    adapters = [read_adapter(file) for file in request.reward_files().values()]
    probed_adapters = {label: adapters[labels.index(label)] for label in probe.rewards}
    kl_weights = {label: probe.kl_weight_of(label, adapter) for label, adapter in probed_adapters.items()}
    blend = blend_of(request, [adapter.kl_weight for adapter in adapters])
    rewards = {
        label: Rescaled(load_reward(name, library, request.device), Scale(probed_adapters[label].reward_factor))
        for label, name in probe.rewards.items()
    }
    sampler = _Sampler(request, adapters)
    coefficients = blend.coefficients
    probed = probed_steps(request.steps, probe.steps) if rewards else []
    together = sampler.together(coefficients)
    variants = len(coefficients) + (together is not None)
    evaluations = request.steps * variants + probe.samples * sum(request.steps - k for k in probed)
    with tqdm(total=evaluations, unit="evaluation") as progress, torch.no_grad():
        sampler.progress = progress
        steps, states = sampler.recorded(coefficients, together)
        gaps = [gap for k in probed for gap in _gaps(sampler, k, states[k], rewards, kl_weights, coefficients, probe)]
    spent = request.steps * sum(c != 0 for c in coefficients)
    diagnosis = Diagnosis(tuple(labels), blend.formula(), tuple(steps), tuple(gaps), evaluations, spent)
    _write(diagnosis, request, probe, out)
    return diagnosis


class _Sampler:
    """The request's models, and its run in the coordinates of blend_core/gaussian: x = x0 + sigma n, or flow's."""

    def __init__(self, request: Request, adapters: Sequence[Adapter]):
        for logging in (diffusers_logging, transformers_logging):
            logging.disable_progress_bar()
        pipe = load_base(place(request.base), request.config, dtype_of(request.dtype))
        Sampling(request.steps, request.eta, request.cfg).options_for(pipe)  # refuses an eta that it cannot take
        factors, _ = match(pipe, adapters)
        pipe.to(request.device)
        self.base = Base(pipe, request.size or 0)
        self.bank = LoRABank(factors).to(request.device)
        self.attachment = self.bank.attach(self.base.network)
        self.items = request.items()
        self.prompts = [item["prompt"] for item in self.items]
        self.eta = request.eta
        self.flow = self.base.family.transition == "flow"
        self.family = "flow" if self.flow else "ve"
        self.steps = self.base.chain(SamplingSettings(steps=request.steps, eta=0, noise_level=0))
        self.sigmas = [step.noise if self.flow else step.noise / step.signal for step in self.steps] + [0.0]
        self.guidance = self.base.guidance(self.prompts, request.cfg)
        self.progress: tqdm | None = None

    def noise(self, *purpose) -> Callable[[], Tensor]:
        """Standard normal noise, one generator per image and purpose; none: the images' own seeds, as generate has."""
        seeds = [item["seed"] for item in self.items]
        if purpose:
            generators = [stream(seed, *purpose, i) for i, seed in enumerate(seeds)]
        else:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return ImageNoise(generators, self.base.latent_shape, torch.empty(0, device=self.base.device))

    def denoised(self, x: Tensor, k: int, variant: int = 0) -> Tensor:
        """The guided prediction of x0 by one variant (0: the base) before step k."""
        step = self.steps[k]
        own = x if self.flow else x * step.signal
        rows = self.guidance.rows(own)
        with self.attachment.using([variant] * len(rows)):
            predictions = self.base.call(self.base.network, rows, step.timestep, self.guidance.conditions)
        self.progress.update()
        return step.x0(own, self.guidance.guided(predictions))

    def together(self, coefficients: Sequence[float]) -> int | None:
        """The variant that is all LoRAs added up at these coefficients; None where it is the base or one LoRA."""
        plan = merged(coefficients, 1, [0])
        self.attachment.mix(plan.mixtures)
        return next(iter(plan.mixtures), None)

    def recorded(
        self, coefficients: Sequence[float], together: int | None
    ) -> tuple[list[Disagreement], list[Tensor]]:
        """The blend's run: how the bases disagree before every step, and the states there."""
        noise = self.noise()
        x = noise() * (1.0 if self.flow else 1 / self.steps[0].signal)
        found, states = [], []
        weights = torch.tensor(coefficients, dtype=x.dtype, device=x.device).view(-1, *[1] * x.dim())
        for k, sigma in enumerate(self.sigmas[:-1]):
            each = torch.stack([self.denoised(x, k, variant) for variant in range(len(coefficients))])
            added_up = None if together is None else self.denoised(x, k, together)
            found.append(disagreement(x, each, coefficients, k, sigma, added_up))
            states.append(x)
            x, spread = reverse_step(x, (weights * each).sum(0), sigma, self.sigmas[k + 1], self.eta, self.family)
            x = x + spread * noise() if spread > 0 else x
        return found, states


def _gaps(
    sampler: _Sampler,
    k: int,
    x: Tensor,
    rewards: dict[str, Reward],
    kl_weights: dict[str, float],
    coefficients: Sequence[float],
    probe: Probe,
) -> list[Gap]:
    """The gaps of every probed reward before step k, all from the same samples."""
    scores = {label: [] for label in rewards}
    for i in range(probe.samples):
        noise = sampler.noise("posterior", k, i)
        clean = posterior_samples(sampler.denoised, x, sampler.sigmas, k, sampler.family, noise)
        images = sampler.base.decode(clean)
        for label, reward in rewards.items():
            scores[label].append(reward(images, sampler.prompts).cpu())
    return [
        gap_at(k, sampler.sigmas[k], label, torch.stack(found), kl_weights[label], coefficients)
        for label, found in scores.items()
    ]


def _write(diagnosis: Diagnosis, request: Request, probe: Probe, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rewards = {label: stated_reward(name, out) for label, name in probe.rewards.items()}
    said = {"request": asdict(request.stated(out)), "probe": asdict(replace(probe, rewards=rewards))}
    content = {**said, **json.loads(diagnosis.to_json())}
    write(out / "diagnosis.json", json.dumps(content, indent=1, ensure_ascii=False).encode("utf8"))
    buffer = io.BytesIO()
    draw(diagnosis).save(buffer, "PNG")
    write(out / "diagnosis.png", buffer.getvalue())
