"""dpo: offline pairs (Diffusion-DPO, arXiv 2311.12908), on the sampler's own chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..data.pairs import PairSet
from ..data.prompts import Chunk
from ..model.policy import ImagePolicy
from ..seeding import stream
from ..settings.config import Config
from . import losses
from .objective import Pass, Sample, Stateless, Stats


@dataclass
class Preference(Stateless):
    """A noise level is drawn in proportion to its KL factor, and both images of a pair get the same noise.

    The evidence is the difference in squared error to the noise that was added (losses.preference_evidence).
    """

    config: Config
    policy: ImagePolicy
    pairs: PairSet

    def collect(self, chunk: Chunk) -> Sample:
        """The prompts; images are encoded in the pass."""
        prompts = [self.pairs.prompt(item) for item in chunk.items]
        return Sample(chunk, prompts, self.policy.encode(prompts))

    def compare(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """Nothing to share."""
        return samples, {}

    def passes(self, samples: Sequence[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and draw of a noise level, and of one that is charged its KL where there are such."""
        factors = [step.kl_factor for step in self.policy.steps]
        rewarded, draws = self.config.rewarded, self.config.dpo.draws
        share = 1 / (len(samples) * draws)
        kinds = [partial(self._pass, factors=factors[:rewarded], share=share)]
        if rewarded < len(factors):
            kinds.append(partial(self._charge, factors=factors, first=rewarded, share=share))
        return [partial(kind, sample, draw=j) for sample in samples for j in range(draws) for kind in kinds]

    def _pass(self, sample: Sample, factors: list[float], draw: int, share: float) -> tuple[Tensor, Stats]:
        k, noise = self._level(sample, factors, "level", draw), self._noise(sample, draw)
        predict = self.policy.predictor(sample.encoding)
        reference = self.policy.reference_predictor(sample.encoding)
        evidence = []
        for clean in self.pairs.latents(self.policy, sample.chunk.items):
            x, target = self.policy.steps[k].diffused(clean, noise)
            evidence.append(losses.preference_evidence(predict(x, k), reference(x, k), target, sum(factors)))
        loss = losses.preference(*evidence, kl_weight=self.config.kl_weight)
        margin = self.config.kl_weight * (evidence[0] - evidence[1]).detach()
        figures = {"preference_loss": loss.mean().item(), "margin": margin.mean().item()}
        return loss.mean() * share, figures | {"right": (margin > 0).float().mean().item()}

    def _charge(
        self, sample: Sample, factors: list[float], first: int, draw: int, share: float
    ) -> tuple[Tensor, Stats]:
        """The KL of the steps from `first` on, at the better images."""
        k, noise = first + self._level(sample, factors[first:], "charged", draw), self._noise(sample, draw)
        better, _ = self.pairs.latents(self.policy, sample.chunk.items)
        x, _ = self.policy.steps[k].diffused(better, noise)
        prediction = self.policy.predictor(sample.encoding)(x, k)
        squares = (prediction - self.policy.reference_predictor(sample.encoding)(x, k)).square().flatten(1).sum(1)
        kl = sum(factors[first:]) * squares
        return (self.config.kl_weight * kl).mean() * share, {"charged_kl": kl.mean().item()}

    def _level(self, sample: Sample, factors: list[float], purpose: str, draw: int) -> int:
        """One of the factors' places, in proportion to them; numbered by image, so that one seed gives one run."""
        generator = stream(self.config.seed, purpose, sample.chunk.numbers[0], draw)
        return int(torch.multinomial(torch.tensor(factors), 1, generator=generator))

    def _noise(self, sample: Sample, draw: int) -> Tensor:
        return self.policy.noise([stream(self.config.seed, "noise", number, draw) for number in sample.chunk.numbers])()
