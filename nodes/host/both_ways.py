"""Images of a blend by exact and by merged evaluation from the same noise, scored by rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blend_core import BlendError
from ...blend_core.blend import parse_weights
from ...blend_core.diagnostics import ScoredWays, check_pairs
from ...blend_core.estimators import Estimator, exact, merged
from ...blend_core.rewards import check_images, scored_ways
from ..types import LoRABlend
from .apply import FINE, check_bases, sample
from .interface import part_of_progress
from .reward_models import RewardModel, decoded

_MOST_SEED = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class BothWays:
    """What is compared: the rewards with their weights, and images of each way for every image of the latent."""

    rewards: Sequence[RewardModel]
    weights: Sequence[float]
    vae: object
    prompt: str
    images: int

    @classmethod
    def of(
        cls, blend: LoRABlend, rewards: Sequence[RewardModel], weights: str, vae, prompt: str, images: int, batch: int
    ) -> BothWays:
        """batch: images of the latent. Raises BlendError for what keeps it from running, before anything is sampled."""
        if vae is None:
            raise BlendError("rewards are connected, but no VAE, which decodes what they score. Connect one.")
        for model in rewards:
            model.reward.one_per_image([prompt], 1)  # refuses an empty prompt
        check_pairs(images * batch)
        check_bases(blend, merged)
        if not merged(blend.coefficients(FINE)[0], FINE, [0]).mixtures:
            raise BlendError(
                "merged and exact are the same here, because every step is the base model or one LoRA as trained: "
                "there is nothing to compare. Disconnect the rewards, or give several LoRAs a weight."
            )
        return cls(rewards, parse_weights(weights, len(rewards), "reward"), vae, prompt, images)

    def scored(
        self, model, blend: LoRABlend, execution: str, latent_image: dict, ksampler: dict
    ) -> tuple[tuple[ScoredWays, ...], int]:
        """The rewards' differences, and the evaluations that they took per image of the latent.

        Image i is of the seed + i by either way.
        """
        scores: dict[Estimator, list[Tensor]] = {exact: [], merged: []}
        spent, parts = 0.0, 2 * self.images
        for i in range(self.images):
            options = ksampler | {"seed": (ksampler["seed"] + i) & _MOST_SEED}
            for j, (estimator, of_way) in enumerate(scores.items()):
                with part_of_progress(2 * i + j, parts):
                    run = sample(model, blend, estimator, execution, latent_image, **options)
                of_way.append(self._scores(run.latent["samples"]))
                spent += run.calls * (run.plan.evaluations_per_step if run.plan else 0)
        by_exact, by_merged = (self._by_reward(of_way) for of_way in scores.values())
        return scored_ways(by_exact, by_merged, self.weights), round(spent)

    def _scores(self, latents: Tensor) -> Tensor:
        """(rewards, batch)"""
        pixels = decoded(self.vae, latents)
        check_images(pixels)
        return torch.stack([torch.cat(list(reward.scores(pixels, [self.prompt]))) for reward in self.rewards])

    def _by_reward(self, scores: Sequence[Tensor]) -> dict[str, Tensor]:
        """(1, images) of every reward; one that comes twice has its place in the row behind its name."""
        names = [reward.name for reward in self.rewards]
        labels = [name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names, start=1)]
        return dict(zip(labels, torch.cat(list(scores), dim=1)[:, None], strict=True))
