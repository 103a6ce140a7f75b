"""distil: the policy learns the teacher's prediction at the states that its own sampling visits.

No reward and no KL: the loss is |prediction - teacher's|^2 alone, whose optimum is the teacher at every state where the
policy can be it. States are the policy's own because it is sampled by itself later, where its errors add up; a state
that only the teacher visits would teach nothing of these (as in on-policy distillation of language models, arXiv
2306.13649; for flow models with one expert per prompt, Flow-OPD, arXiv 2605.08063).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..data.prompts import Chunk
from ..model.policy import TaughtPolicy
from ..model.rollout import rollout
from . import losses
from .objective import Pass, Sample, Stateless, Stats
from .online import Online


@dataclass(frozen=True)
class VisitedSample(Sample):
    """A chunk that was sampled. states: (steps + 1, n, ...), those that the policy visited."""

    states: Tensor


@dataclass
class Distillation(Stateless, Online):
    """The teacher is asked in the pass, at the chosen states alone."""

    policy: TaughtPolicy

    def collect(self, chunk: Chunk) -> VisitedSample:
        """The states of a rollout; nothing is decoded or scored."""
        start = self.encode(chunk)
        path = rollout(self.policy.steps, self.noise(chunk), self.policy.predictor(start.encoding))
        return VisitedSample(chunk, start.prompts, start.encoding, path.states)

    def compare(self, samples: list[VisitedSample], epoch: int) -> tuple[list[VisitedSample], Stats]:
        """Nothing to share."""
        return samples, {}

    def passes(self, samples: Sequence[VisitedSample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and chosen step, of which one lies in each equal part of the chain."""
        total, count = len(self.policy.steps), self.config.distil.steps
        edges = [total * i // count for i in range(count + 1)]  # of equal parts
        share = 1 / (len(samples) * total)
        passes: list[Pass] = []
        for sample in samples:
            for low, high in pairwise(edges):
                k = int(torch.randint(low, high, (), generator=draw))
                passes.append(partial(self._pass, sample, k, (high - low) * share))
        return passes

    def _pass(self, sample: VisitedSample, k: int, share: float) -> tuple[Tensor, Stats]:
        """share: of the pass in the mean over images and steps, over the probability that it was chosen."""
        x = sample.states[k]
        taught = self.policy.teacher_predictor(sample.encoding)(x, k)
        loss = losses.imitation(self.policy.predictor(sample.encoding)(x, k), taught).mean()
        return loss * share, {"imitation_loss": loss.item()}
