"""The base of objectives that sample the policy: trajectories of a chunk with their rewards, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.prompts import Chunk
from ..distributed import Gathering
from ..model.policy import Policy
from ..model.rollout import Trajectories, rollout
from ..seeding import stream
from ..settings.config import Config
from .objective import Sample, Stats

Score = Callable[[Tensor, Sequence[str]], Tensor]
"""score(images (n, 3, h, w), n prompts): rewards (n,)."""


@dataclass(frozen=True)
class ScoredSample(Sample):
    """A chunk that was sampled. rewards: (n,)."""

    trajectories: Trajectories
    rewards: Tensor


@dataclass
class Online:
    """A policy, the reward that it is to raise, and all prompts."""

    config: Config
    policy: Policy
    score: Score
    prompts: Sequence[str]
    gathering: Gathering = field(default_factory=Gathering)

    def encode(self, chunk: Chunk) -> Sample:
        """The chunk's prompts, nothing sampled yet."""
        prompts = [self.prompts[item] for item in chunk.items]
        return Sample(chunk, prompts, self.policy.encode(prompts))

    def sample(self, chunk: Chunk, *, with_reference: bool) -> ScoredSample:
        """Roll the chunk out and score it, without gradient. with_reference: with the base's predictions and the KL."""
        start = self.encode(chunk)
        reference = self.policy.reference_predictor(start.encoding) if with_reference else None
        predict = self.policy.predictor(start.encoding)
        with torch.no_grad():
            trajectories = rollout(self.policy.steps, self.noise(chunk), predict, reference)
            rewards = self.score(self.policy.decode(trajectories.latents), start.prompts)
        return ScoredSample(chunk, start.prompts, start.encoding, trajectories, rewards)

    def noise(self, chunk: Chunk) -> Callable[[], Tensor]:
        """The chunk's noise: of every image by its number."""
        return self.policy.noise([stream(self.config.seed, "noise", number) for number in chunk.numbers])

    def rewards_of_all(self, samples: Sequence[ScoredSample]) -> Tensor:
        """The epoch's rewards on all processes, (images,), in the images' order."""
        return self.gathering.in_order(torch.cat([sample.rewards for sample in samples]), numbers_of(samples))


def numbers_of(samples: Sequence[Sample]) -> list[int]:
    """The images' numbers within the run."""
    return [number for sample in samples for number in sample.chunk.numbers]


def reward_figures(rewards: Tensor) -> Stats:
    """Mean, spread and quantiles of rewards (images,) for the log."""
    low, middle, high = torch.quantile(rewards.float(), rewards.new_tensor([0.1, 0.5, 0.9]).float()).tolist()
    spread = rewards.std().item() if len(rewards) > 1 else 0.0
    figures = {"reward": rewards.mean().item(), "reward_std": spread}
    return figures | {"reward_p10": low, "reward_p50": middle, "reward_p90": high}
