"""distil: the policy learns the teacher's prediction at the states that its own sampling visits.

No reward and no KL: the loss is |prediction - teacher's|^2 alone, weighed by what a difference at that step does to the
image (`step_weights`). Its optimum is the teacher wherever the policy can be it. States are the policy's own because it
is sampled by itself later, where its errors add up (as in on-policy distillation of language models, arXiv 2306.13649;
of flow models with one expert per prompt, Flow-OPD, arXiv 2605.08063).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Chunk
from ..distributed import Gathering
from ..model.chain import Step
from ..model.policy import TaughtPolicy
from ..model.rollout import rollout
from ..seeding import stream
from . import losses
from .objective import Pass, Sample, Stats
from .online import Online
from .predicted_x0 import spread_choice

FLOOR = 0.25  # of the mean chance in the choice of steps: what every step has at least


@dataclass(frozen=True)
class VisitedSample(Sample):
    """A chunk that was sampled. states: (steps + 1, n, ...), those that the policy visited.

    taught: step -> what the teacher predicts at its state, (n, ...), of the steps at which it was asked.
    """

    states: Tensor
    taught: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class StepLosses:
    """What the loss has been at every step of the chain, a running mean of epochs; nan before it was measured.

    Predictions at high noise are often a thousand times further apart than at low noise: passes go where the loss is.
    """

    means: list[float]
    sums: Tensor
    decay: float = 0.5

    @classmethod
    def of(cls, steps: int) -> StepLosses:
        """Of a chain of so many steps, nothing measured."""
        return cls([math.nan] * steps, torch.zeros(2, steps, dtype=torch.float64))

    def note(self, k: int, loss: float) -> None:
        """Take in a pass at step k."""
        self.sums[:, k] += torch.tensor([loss, 1.0], dtype=torch.float64)

    def settle(self, gathering: Gathering) -> None:
        """Take the noted passes of all processes into the means. Every process must call it."""
        named = {f"{row} {k}": value for row, values in enumerate(self.sums.tolist()) for k, value in enumerate(values)}
        values = list(gathering.mean(named).values())
        steps = len(self.means)
        for k, (total, count) in enumerate(zip(values[:steps], values[steps:], strict=True)):
            if count:
                former, new = self.means[k], total / count
                self.means[k] = new if math.isnan(former) else self.decay * former + (1 - self.decay) * new
        self.sums.zero_()

    @property
    def expected(self) -> list[float]:
        """Of every step, above 0; steps that were not measured are taken for the mean of the others."""
        known = [mean for mean in self.means if not math.isnan(mean)]
        middle = sum(known) / len(known) if known else 1.0
        return [max(middle if math.isnan(mean) else mean, 1e-30) for mean in self.means]


def step_weights(steps: Sequence[Step]) -> list[float]:
    """What a squared difference of predictions counts at every step, 1 on average: the square of what it moves.

    Without noise step k makes s x0 + t n of the predicted x0 and n (s, t: signal and noise of the next state): there a
    difference d of predictions is x0_gain (s - t signal / noise) d. For data of variance 1, as latents are scaled to,
    the deterministic sampler divides a difference by sqrt(s^2 + t^2) on its way to the image. Where all steps count the
    same, early ones are nearly all of the loss, and late ones drift.
    """
    levels = [*((step.signal, step.noise) for step in steps), (1.0, 0.0)]
    moved = [
        (step.x0_gain * (signal - noise * step.signal / step.noise)) ** 2 / (signal**2 + noise**2)
        for step, (signal, noise) in zip(steps, levels[1:], strict=True)
    ]
    mean = sum(moved) / len(moved)
    return [square / mean for square in moved]


@dataclass
class Distillation(Online):
    """The teacher is asked at the chosen states alone, once for all turns that `reuse` makes.

    step_losses: what the choice of steps goes by, and part of the checkpoint.
    """

    policy: TaughtPolicy
    step_losses: StepLosses = field(init=False)
    weights: list[float] = field(init=False)

    def __post_init__(self):
        self.step_losses, self.weights = StepLosses.of(len(self.policy.steps)), step_weights(self.policy.steps)

    def collect(self, chunk: Chunk) -> VisitedSample:
        """The states of a rollout; nothing is decoded or scored."""
        start = self.encode(chunk)
        path = rollout(self.policy.steps, self.noise(chunk), self.policy.predictor(start.encoding))
        return VisitedSample(chunk, start.prompts, start.encoding, path.states)

    def compare(self, samples: list[VisitedSample], epoch: int) -> tuple[list[VisitedSample], Stats]:
        """The samples as they are; the last epoch's losses by step, of all processes, now count."""
        self.step_losses.settle(self.gathering)
        return samples, {}

    def passes(self, samples: Sequence[VisitedSample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and chosen step, weighed so that the sum's mean is the mean over images and steps."""
        total = len(self.policy.steps)
        # the root of this is in proportion to a pass's gradient, weight * |difference|: drawn so, none is a spike
        factors = [loss * weight for loss, weight in zip(self.step_losses.expected, self.weights, strict=True)]
        passes: list[Pass] = []
        update = int(torch.randint(2**31, (), generator=draw))
        for sample in samples:  # by the image's number, so that a chunk's steps are the same on any process
            choice = stream(self.config.seed, "visited", sample.chunk.numbers[0], update)
            for k, weight in spread_choice(factors, self.config.distil.steps, choice, FLOOR):
                passes.append(partial(self._pass, sample, k, weight / total, len(samples)))
        return passes

    def _pass(self, sample: VisitedSample, k: int, weight: float, chunks: int) -> tuple[Tensor, Stats]:
        """weight: of the step in the mean over the chain, over the probability that it was chosen."""
        x = sample.states[k]
        if k not in sample.taught:
            sample.taught[k] = self.policy.teacher_predictor(sample.encoding)(x, k)
        prediction = self.policy.predictor(sample.encoding)(x, k)
        loss = losses.imitation(prediction, sample.taught[k]).mean() * self.weights[k]
        self.step_losses.note(k, loss.item())
        figures = {"imitation_loss": loss.item() * weight * self.config.distil.steps}  # their mean is the chain's
        return loss * weight / chunks, figures

    def state_dict(self) -> dict[str, Any]:
        """The losses by step. Every process must call it."""
        self.step_losses.settle(self.gathering)
        return {"step_losses": self.step_losses.means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's."""
        self.step_losses.means = list(state["step_losses"])
