"""draft through the last K steps (DRaFT-K, arXiv 2309.17400), their KL with it; K = steps is the whole gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..data.prompts import Chunk
from . import losses
from .objective import Pass, Sample, Stateless, Stats
from .online import Online


class LastSteps(Stateless, Online):
    """Earlier steps get no reward gradient; some are charged their KL, so that shared weights do not drift there."""

    def collect(self, chunk: Chunk) -> Sample:
        """Prompts alone: the chain is rolled out in the pass, with gradient."""
        return self.encode(chunk)

    def compare(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """Nothing is known yet."""
        return samples, {}

    def passes(self, samples: Sequence[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk."""
        early = len(self.policy.steps) - self.config.draft.steps
        charged = torch.randperm(early, generator=draw)[: self.config.draft.kl_steps].tolist()
        return [partial(self._pass, sample, early, charged, 1 / len(samples)) for sample in samples]

    def _pass(self, sample: Sample, early: int, charged: list[int], share: float) -> tuple[Tensor, Stats]:
        """early: steps before the differentiated ones.  charged: those of them that pay for all."""
        steps, noise = self.policy.steps, self.noise(sample.chunk)
        predict = self.policy.predictor(sample.encoding)
        reference = self.policy.reference_predictor(sample.encoding)
        x = noise()
        early_kl = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for k in range(early):
            with torch.set_grad_enabled(k in charged):
                prediction = predict(x, k)
            if k in charged:
                early_kl = early_kl + steps[k].kl(prediction, reference(x, k)) * (early / len(charged))
            x = steps[k].mean(x, prediction.detach()) + steps[k].sigma * noise()
        late_kl = torch.zeros_like(early_kl)
        for k in range(early, len(steps)):
            prediction = self.policy.recomputing(predict)(x, k)
            late_kl = late_kl + steps[k].kl(prediction, reference(x, k))
            x = steps[k].mean(x, prediction) + steps[k].sigma * noise()
        rewards = self.score(self.policy.decode(x), sample.prompts)
        loss = losses.reward_gradient(rewards, late_kl + early_kl, kl_weight=self.config.kl_weight)
        figures = {"reward": rewards.mean().item(), "path_kl": (late_kl + early_kl).mean().item()}
        return loss.mean() * share, figures
