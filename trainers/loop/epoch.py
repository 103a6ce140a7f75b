"""The parts of an epoch that are the same for every objective: collecting samples, and updates from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...blend_core.errors import BlendError
from ..data.prompts import Chunk
from ..objectives.objective import Objective, Pass, Sample, Stats
from ..seeding import stream
from ..settings.config import Config
from ..sharding import whole
from .average import Average

if TYPE_CHECKING:
    from accelerate import Accelerator

RATIO_TOLERANCE = 1e-5


class Updater:
    """Applies the gradients of passes. network: what the accelerator prepared, if it did."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimiser: torch.optim.Optimizer,
        grad_clip: float,
        *,
        accelerator: Accelerator | None = None,
        network: nn.Module | None = None,
        schedule: LRScheduler | None = None,
        average: Average | None = None,
    ):
        self.parameters, self.optimiser, self.grad_clip = list(parameters), optimiser, grad_clip
        self.accelerator, self.network, self.schedule = accelerator, network, schedule
        self.average = average

    def __call__(self, passes: Sequence[Pass]) -> list[Stats]:
        """One optimiser update from the sum of the passes' losses; the passes' figures, in the last the update's too.

        Raises BlendError where the loss or its gradient is not a finite number.
        """
        figures, total = [], 0.0
        for number, forward in enumerate(passes, 1):
            with self._synchronised(number == len(passes)):
                loss, stats = forward()
                self._backward(loss)
            figures.append(dict(stats))
            total += loss.item()
        norm = self._clip()
        scaled = getattr(self.accelerator, "scaler", None) is not None  # fp16's scaler skips overflows by itself
        if not (math.isfinite(total) and (scaled or torch.isfinite(norm))):
            raise BlendError(
                f"the loss or its gradient is not a finite number (loss {total:g}, gradient norm {norm.item():g}). "
                "The LoRA before this update is in the last checkpoint; lower optimisation.learning_rate, or use "
                "bf16 instead of fp16."
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update()
        figures[-1] |= {"gradient_norm": norm.item(), "loss": total}
        return figures

    def _synchronised(self, last: bool) -> AbstractContextManager:
        if self.accelerator is None or last:
            return nullcontext()
        return self.accelerator.no_sync(self.network)

    def _backward(self, loss: Tensor) -> None:
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _clip(self) -> Tensor:
        clip = torch.nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
        return whole(torch.as_tensor(clip(self.parameters, self.grad_clip)).detach()).cpu()


def collect(
    objective: Objective, minibatches: Sequence[Sequence[Chunk]], asked_to_stop: Callable[[], bool] = lambda: False
) -> list[Sample] | None:
    """What the policy makes of an epoch's chunks, in their order; None where a stop was asked for in between."""
    samples = []
    for chunk in chain.from_iterable(minibatches):
        if asked_to_stop():
            return None
        samples.append(objective.collect(chunk))
    return samples


def update_policy(
    config: Config, objective: Objective, samples: Sequence[Sample], update: Updater, epoch: int
) -> Stats:
    """One update per minibatch of the compared samples, as often as `reuse` says; the figures of all passes.

    Raises BlendError where the policy that collected and the policy that is trained disagree.
    """
    size = len(samples) // config.updates_per_epoch
    figures: list[Stats] = []
    for turn in range(config.reuse):
        for number in range(config.updates_per_epoch):
            draw = stream(config.seed, "steps", epoch, turn, number)
            stats = update(objective.passes(samples[number * size : (number + 1) * size], draw))
            if turn == number == 0:
                _check_ratio(stats)
            figures += stats
    return _averages(figures)


def _check_ratio(stats: Sequence[Stats]) -> None:
    """Before the first update the policy is the one that sampled, so every likelihood ratio must be 1."""
    worst = max((figures.get("max_ratio_error", 0.0) for figures in stats), default=0.0)
    if worst > RATIO_TOLERANCE:
        raise BlendError(
            f"the likelihood ratio is off by {worst:.1e} before the first update, expected below {RATIO_TOLERANCE:g}: "
            "the network predicts differently in sampling and in training. Use optimisation.precision no, and report "
            "this with the base model's name."
        )


def _averages(logged: Sequence[Stats]) -> Stats:
    names = dict.fromkeys(name for figures in logged for name in figures)
    averages = {}
    for name in names:
        values = [figures[name] for figures in logged if name in figures]
        averages[name] = max(values) if name.startswith("max_") else sum(values) / len(values)
    return averages
