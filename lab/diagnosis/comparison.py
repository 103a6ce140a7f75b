"""Which way a reward goes: images by exact and by merged evaluation, from the same prompts and noise, scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blend_core import BlendError, LoRABank
from ...blend_core.diagnostics import ScoredWays, check_pairs
from ...blend_core.network.selection import Mixtures
from ...blend_core.rewards import Reward, scored_ways
from ..chain import Sampler
from ..generation.record import Request
from ..scores.chosen_rewards import Chosen
from .blend_run import BlendRun


@dataclass(frozen=True)
class Comparison:
    """What is compared. rewards: what scores, nothing where nothing is compared.  images: of each way, per prompt."""

    rewards: Sequence[Chosen] = ()
    images: int = 16

    @property
    def weights(self) -> list[float]:
        """One per reward, equal where none were given."""
        return [1 / len(self.rewards) if reward.weight is None else reward.weight for reward in self.rewards]

    def check(self, request: Request, together: Mixtures) -> None:
        """Raise BlendError where there is nothing to compare, or too few images for an interval."""
        if not self.rewards:
            return
        check_pairs(self.images * len(request.prompts))
        if not together:
            raise BlendError(
                "merged and exact are the same here, because the blend is the base model or one LoRA as trained: there "
                "is nothing to compare. Leave --score out, or give several LoRAs a weight."
            )

    def evaluations(self, steps: int, coefficients: Sequence[float]) -> int:
        """What it costs per prompt."""
        return self.images * steps * (sum(c != 0 for c in coefficients) + 1) if self.rewards else 0

    def scored(
        self,
        run_of: Callable[[Sequence[int]], BlendRun],
        request: Request,
        rewards: Mapping[str, Reward],
        coefficients: Sequence[float],
    ) -> tuple[ScoredWays, ...]:
        """The rewards' differences. run_of(seeds): the blend's run of every prompt, one seed each."""
        if not rewards:
            return ()
        scores: tuple[dict[str, list[Tensor]], ...] = ({name: [] for name in rewards}, {name: [] for name in rewards})
        for seed in range(request.seed, request.seed + self.images):
            both = run_of([seed] * len(request.prompts)).images_both_ways(coefficients, request.eta)
            for images, of_way in zip(both, scores, strict=True):
                for name, reward in rewards.items():
                    of_way[name].append(reward(images, request.prompts).cpu())
        exact, merged = ({name: torch.stack(parts, 1) for name, parts in of_way.items()} for of_way in scores)
        return scored_ways(exact, merged, self.weights)


def runs_of(
    sampler: Sampler, bank: LoRABank, together: Mixtures, request: Request, progress: Callable[[int], object]
) -> Callable[[Sequence[int]], BlendRun]:
    """The blend's runs of every prompt at other seeds, on the models of `sampler`. See BlendRun for the others."""

    def run_of(seeds: Sequence[int]) -> BlendRun:
        other = Sampler(sampler.base_model, sampler.steps, request.prompts, seeds, request.cfg)
        return BlendRun(other, bank, together, progress)

    return run_of
