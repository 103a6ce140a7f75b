"""Trajectories of a policy, with what the losses need of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chain import Step

Predict = Callable[[Tensor, int], Tensor]
"""predict(x, k): the guided prediction at x (batch, ...) for step k of the chain."""


@dataclass(frozen=True)
class Trajectories:
    """What one rollout leaves. steps: the chain's length; n: images.

    states: (steps + 1, n, ...), from noise to the clean latent.  log_probs: (steps, n), of the policy that sampled,
    summed over dimensions.  references: (steps, n, ...), the base model's predictions; None where not asked for.
    kl: (steps, n), each step's KL to the base; zeros without references.
    """

    states: Tensor
    log_probs: Tensor
    references: Tensor | None
    kl: Tensor

    @property
    def latents(self) -> Tensor:
        """The clean latents, (n, ...)."""
        return self.states[-1]


@torch.no_grad()
def rollout(
    steps: Sequence[Step], noise: Callable[[], Tensor], predict: Predict, reference: Predict | None = None
) -> Trajectories:
    """Sample the chain from noise; noise() is called once for the start and once per step.

    States keep the dtype of the noise (float32 at least) and log_probs are those of the states as stored: were they
    rounded after their log-probability was taken, the ratio of policies would not start at 1.
    """
    x = noise()
    states, log_probs, references, kls = [x], [], [], []
    for k, step in enumerate(steps):
        prediction = predict(x, k)
        mean = step.mean(x, prediction)
        x = mean + step.sigma * noise()
        log_probs.append(step.log_prob(x, mean) if step.sigma > 0 else x.new_zeros(len(x)))
        if reference is not None:
            references.append(reference(states[-1], k))
            kls.append(step.kl(prediction, references[-1]))
        states.append(x)
    kl = torch.stack(kls) if kls else torch.zeros_like(torch.stack(log_probs))
    return Trajectories(
        torch.stack(states), torch.stack(log_probs), torch.stack(references) if references else None, kl
    )
