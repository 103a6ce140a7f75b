"""The models of an evaluation, and the images of a pass: one chain and one noise for every method, path KL, costs.

    x_next = mean(x, prediction) + sigma * noise        (trainers/model/chain.py)

A method differs from the others in the prediction alone, or in which of several x_next it goes on with. The path KL to
the base, sum over steps of |mean - mean_base|^2 / (2 sigma^2), is taken on the path that was sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...blend_core import LoRABank, Target
from ...blend_core.adapters import Change
from ...blend_core.estimators import exact, image_seed
from ...blend_core.rewards import Reward, weighted
from ...trainers.model.base import Base
from ...trainers.model.chain import Step
from ...trainers.model.rollout import Predict
from ...trainers.seeding import ImageNoise, stream
from ...trainers.settings.config import SamplingSettings
from ..chain import Sampler
from .memory import Peak
from .soup import soup_of_factors


@dataclass(frozen=True)
class LoRAs:
    """m reward LoRAs. factors: of each.  kl_weights, etas: what their files state.

    singles: (method, preference) -> the factors of one LoRA that stands for the whole blend.
    """

    names: tuple[str, ...]
    factors: Sequence[Mapping[Target, Change]]
    kl_weights: tuple[float | None, ...]
    etas: tuple[float | None, ...]
    singles: Mapping[tuple[str, tuple[float, ...]], Mapping[Target, Change]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one pass gave. images: (n, 3, h, w) in [0, 1], on the CPU.  scores: (n,) per reward, those only shown last.

    evaluations: of the network per image, guidance counted as one.  seconds: of the pass, scoring the results and the
    path KL left out.  peak_bytes: None where unknown.  kl: (n,) nats, None for methods without one.
    """

    images: Tensor
    scores: dict[str, Tensor]
    evaluations: float
    seconds: float
    peak_bytes: int | None
    kl: Tensor | None


class Host:
    """The models of an evaluation. rewards: by name, in the order of the preferences.  watched: only shown."""

    def __init__(
        self,
        base: Base,
        loras: LoRAs,
        rewards: Mapping[str, Reward],
        sampling: SamplingSettings,
        watched: Mapping[str, Reward] | None = None,
    ):
        self.base, self.loras, self.rewards, self.sampling = base, loras, dict(rewards), sampling
        self.watched = dict(watched or {})
        self.chain: list[Step] = base.chain(sampling)
        self.bank = self._bank(loras.factors)
        self._singles: dict[tuple[str, tuple[float, ...]], LoRABank] = {}
        self._soups: dict[tuple[float, ...], LoRABank] = {}

    @property
    def has_kl(self) -> bool:
        """Whether every step adds noise, so that it has a likelihood."""
        return all(step.sigma > 0 for step in self.chain)

    def single(self, method: str, preference: tuple[float, ...]) -> LoRABank:
        """A bank whose variant 1 is the method's LoRA for this preference."""
        if (method, preference) not in self._singles:
            self._singles[method, preference] = self._bank([self.loras.singles[method, preference]])
        return self._singles[method, preference]

    def soup(self, weights: tuple[float, ...]) -> LoRABank:
        """A bank whose variant 1 has the averaged factors of the LoRAs."""
        if weights not in self._soups:
            self._soups[weights] = self._bank([soup_of_factors(self.loras.names, self.loras.factors, weights)])
        return self._soups[weights]

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """(n,) of each reward, then of each that is only shown."""
        return {name: reward(images, prompts) for name, reward in (self.rewards | self.watched).items()}

    def total(self, preference: Sequence[float], images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted reward, (n,). Rewards of weight 0 are not asked."""
        pairs = [(w, reward) for w, reward in zip(preference, self.rewards.values(), strict=True) if w != 0]
        return weighted([reward(images, prompts) for _, reward in pairs], [w for w, _ in pairs])

    def run(self, method: Any, point: Any, prompts: Sequence[str], seeds: Sequence[int]) -> Outcome:
        """prompts[i] from seeds[i] by a method of methods.py."""
        peak, started = Peak(self.base.device), self.now()
        batch = Batch(self, prompts, seeds, charged=method.blends and self.has_kl)
        with torch.no_grad():
            images = self.base.decode(method.sample(batch, point))
            seconds, peak_bytes = self.now() - started - batch.reference_seconds, peak.bytes()
            scores = {name: values.cpu() for name, values in self.score(images, prompts).items()}
        kl = None if batch.kl is None else batch.kl.cpu()
        return Outcome(images.float().cpu(), scores, batch.evaluations, seconds, peak_bytes, kl)

    def _bank(self, factors: Sequence[Mapping[Target, Change]]) -> LoRABank:
        return LoRABank(factors).to(self.base.device)

    def now(self) -> float:
        """Seconds, when the device has done what it was told."""
        if self.base.device.type == "cuda":
            torch.cuda.synchronize(self.base.device)
        return time.perf_counter()


class Batch(Sampler):
    """The images of one pass on their way. kl: (n,), summed up while they are sampled; None where it is not asked for.

    base: the base model's prediction.  evaluations: without those for the KL.
    """

    def __init__(self, host: Host, prompts: Sequence[str], seeds: Sequence[int], charged: bool = False):
        super().__init__(host.base, host.chain, prompts, seeds, host.sampling.cfg)
        self.host, self.reference_seconds = host, 0.0
        self.kl = torch.zeros(len(self.seeds), dtype=torch.float64, device=host.base.device) if charged else None
        self.base = self.predictor(host.bank, exact((1.0,) + (0.0,) * host.bank.size, len(self.steps), self.seeds))

    @property
    def choice_seeds(self) -> list[int]:
        """Of each image, for evaluations that draw: those that diffusion-blend generate takes."""
        return [image_seed(seed, 0) for seed in self.seeds]

    def candidate_noise(self, candidate: int) -> ImageNoise:
        """Noise of the candidates of a search: the first has that of every method, the others streams of their own."""
        return self.noise([stream(seed, "candidate", candidate) for seed in self.seeds] if candidate else None)

    def sample(self, predict: Predict, noise: ImageNoise | None = None) -> Tensor:
        """The clean latents of the whole chain, (n, ...)."""
        noise = noise or self.noise()
        return self.walk(noise(), range(len(self.steps)), predict, noise)

    def walk(self, x: Tensor, steps: Iterable[int], predict: Predict, noise: Callable[[], Tensor]) -> Tensor:
        """The state after some steps from x, the path KL charged where it is asked for."""
        charged = self.kl is not None and predict is not self.base
        return super().walk(x, steps, self._charged(predict) if charged else predict, noise)

    def value(self, x: Tensor, k: int, preference: Sequence[float]) -> Tensor:
        """The weighted reward of the image that the base predicts before step k, or of x itself at the end, (n,)."""
        clean = x if k == len(self.steps) else self.steps[k].x0(x, self.base(x, k))
        return self.host.total(preference, self.host.base.decode(clean), self.prompts)

    def _charged(self, predict: Predict) -> Predict:
        """The same prediction, whose every call adds the step's KL to the base."""

        def charged(x: Tensor, k: int) -> Tensor:
            prediction = predict(x, k)
            spent, started = self.evaluations, self.host.now()
            self.kl += self.steps[k].kl(prediction, self.base(x, k)).double()
            self.evaluations = spent
            self.reference_seconds += self.host.now() - started
            return prediction

        return charged
