"""A run's diagnosis: all bases' predictions at every step, and the Jensen gap from the base model's posterior."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...blend_core import BlendError, LoRABank, read_adapter
from ...blend_core.adapters import Adapter
from ...blend_core.diagnostics import Diagnosis, Gap, gap_at, probed_steps
from ...blend_core.estimators import merged
from ...blend_core.pictures.diagnosis import draw
from ...blend_core.rewards import Library, Rescaled, Reward, RewardScale, load_reward
from ...pipelines import Sampling, load_base, match
from ...pipelines.loading import hide_loading_bars
from ...trainers.model.base import Base
from ...trainers.places import stated_reward
from ...trainers.settings.config import SamplingSettings
from ..chain import Sampler
from ..files import write, write_json
from ..generation.record import Request
from ..generation.run import blend_of, check
from ..options import dtype_of
from ..toy import place
from .blend_run import BlendRun
from .comparison import Comparison, runs_of

NO_COMPARISON = Comparison()


@dataclass(frozen=True)
class GapProbe:
    """What is probed. rewards: label of a reward LoRA -> name of a reward.  kl_weight: where its file states none."""

    rewards: dict[str, str] = field(default_factory=dict)
    kl_weight: float | None = None
    samples: int = 32
    steps: int = 3

    @classmethod
    def of(cls, options: Sequence[str], labels: Sequence[str], kl_weight, samples: int, steps: int) -> GapProbe:
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


def run(
    request: Request, probe: GapProbe, library: Library, out: Path, comparison: Comparison = NO_COMPARISON
) -> Diagnosis:
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
        label: Rescaled(load_reward(name, library, request.device), RewardScale(probed_adapters[label].reward_factor))
        for label, name in probe.rewards.items()
    }
    coefficients = blend.coefficients
    together = merged(coefficients, 1, [0]).mixtures  # all LoRAs added up; none where it is the base or one LoRA
    comparison.check(request, together)
    judges = {reward.label: reward.opened(library, request.device) for reward in comparison.rewards}
    sampler, bank = _opened(request, adapters)
    probed = probed_steps(request.steps, probe.steps) if rewards else []
    variants = len(coefficients) + len(together)
    evaluations = request.steps * variants + probe.samples * sum(request.steps - k for k in probed)
    evaluations += comparison.evaluations(request.steps, coefficients)
    with tqdm(total=evaluations, unit="evaluation") as progress, torch.no_grad():
        blend_run = BlendRun(sampler, bank, together, progress.update)
        steps, states = blend_run.recorded(coefficients, request.eta)
        gaps = [gap for k in probed for gap in _gaps(blend_run, k, states[k], rewards, kl_weights, coefficients, probe)]
        run_of = runs_of(sampler, bank, together, request, progress.update)
        scores = comparison.scored(run_of, request, judges, coefficients)
    spent = request.steps * sum(c != 0 for c in coefficients)
    diagnosis = Diagnosis(tuple(labels), blend.formula(), tuple(steps), tuple(gaps), evaluations, spent, scores)
    _write(diagnosis, request, probe, comparison, out)
    return diagnosis


def _opened(request: Request, adapters: Sequence[Adapter]) -> tuple[Sampler, LoRABank]:
    """The request's models and LoRAs. Raises BlendError for what cannot be opened, or not be sampled so."""
    hide_loading_bars()
    pipe = load_base(place(request.base), request.config, dtype_of(request.dtype))
    Sampling(request.steps, request.eta, request.cfg).options_for(pipe)  # refuses an eta that it cannot take
    factors, _ = match(pipe, adapters)
    pipe.to(request.device)
    base, items = Base(pipe, request.size or 0), request.items()
    steps = base.chain(SamplingSettings(steps=request.steps, eta=0, noise_level=0))
    prompts, seeds = [item["prompt"] for item in items], [item["seed"] for item in items]
    return Sampler(base, steps, prompts, seeds, request.cfg), LoRABank(factors).to(request.device)


def _gaps(
    blend_run: BlendRun,
    k: int,
    x: torch.Tensor,
    rewards: dict[str, Reward],
    kl_weights: dict[str, float],
    coefficients: Sequence[float],
    probe: GapProbe,
) -> list[Gap]:
    """The gaps of every probed reward before step k, all from the same samples."""
    scores = {label: [] for label in rewards}
    for number in range(probe.samples):
        images = blend_run.posterior_images(x, k, number)
        for label, reward in rewards.items():
            scores[label].append(reward(images, blend_run.sampler.prompts).cpu())
    return [
        gap_at(k, blend_run.sigmas[k], label, torch.stack(values), kl_weights[label], coefficients)
        for label, values in scores.items()
    ]


def _write(diagnosis: Diagnosis, request: Request, probe: GapProbe, comparison: Comparison, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rewards = {label: stated_reward(name, out) for label, name in probe.rewards.items()}
    said = {"request": asdict(request.stated(out)), "probe": asdict(replace(probe, rewards=rewards))}
    said["comparison"] = {
        "rewards": [stated_reward(reward.name, out) for reward in comparison.rewards],
        "weights": comparison.weights,
        "images": comparison.images if comparison.rewards else 0,
    }
    content = {**said, **json.loads(diagnosis.to_json())}
    write_json(out / "diagnosis.json", content)
    buffer = io.BytesIO()
    draw(diagnosis).save(buffer, "PNG")
    write(out / "diagnosis.png", buffer.getvalue())
