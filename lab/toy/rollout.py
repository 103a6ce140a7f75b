"""DDIM as a Markov chain: its transition, and trajectories with every state kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

Predict = Callable[[Tensor, int], Tensor]
"""predict(x, timestep): the guided v-prediction at x (batch, channels, h, w)."""


@dataclass(frozen=True)
class Step:
    """Noise levels of one step: a = alpha_bar before it, p = alpha_bar after it, sigma its noise."""

    timestep: int
    a: Tensor
    p: Tensor
    sigma: Tensor

    def x0(self, x: Tensor, velocity: Tensor) -> Tensor:
        """The predicted clean latent sqrt(a) x - sqrt(1 - a) v."""
        return self.a.sqrt() * x - (1 - self.a).sqrt() * velocity

    def mean(self, x: Tensor, velocity: Tensor) -> Tensor:
        """mu = sqrt(p) x0 + sqrt(1 - p - sigma^2) eps (DDIM, arXiv 2010.02502, eq. 12)."""
        eps = self.a.sqrt() * velocity + (1 - self.a).sqrt() * x
        return self.p.sqrt() * self.x0(x, velocity) + (1 - self.p - self.sigma**2).sqrt() * eps

    def kl(self, x: Tensor, velocity: Tensor, reference: Tensor) -> Tensor:
        """KL between the two steps' Gaussians, |mu - mu_ref|^2 / (2 sigma^2), summed over dimensions, (batch,)."""
        difference = self.mean(x, velocity) - self.mean(x, reference)
        return difference.square().flatten(1).sum(1) / (2 * self.sigma**2)


def schedule(scheduler: DDIMScheduler, steps: int, eta: float) -> list[Step]:
    """The steps of a run, first to last."""
    scheduler.set_timesteps(steps)
    jump = scheduler.config.num_train_timesteps // steps
    levels = []
    for timestep in scheduler.timesteps.tolist():
        a = scheduler.alphas_cumprod[timestep]
        before = timestep - jump
        p = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
        levels.append(Step(timestep, a, p, eta * ((1 - p) / (1 - a) * (1 - a / p)).sqrt()))
    return levels


def guided(unet, text: Tensor, empty: Tensor, cfg: float) -> Predict:
    """Classifier-free guidance, both branches in one batch; text and empty are (batch, tokens, width)."""
    both = torch.cat([empty, text])

    def predict(x: Tensor, timestep: int) -> Tensor:
        unconditional, conditional = unet(torch.cat([x, x]), timestep, both).sample.chunk(2)
        return unconditional + cfg * (conditional - unconditional)

    return predict


@torch.no_grad()
def rollout(predict: Predict, levels: list[Step], x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """All states from x (batch, channels, h, w) to the clean latent, len(levels) + 1 of them."""
    states = [x]
    for level in levels:
        mean = level.mean(x, predict(x, level.timestep))
        x = mean + level.sigma * torch.randn(x.shape, generator=generator)
        states.append(x)
    return states


@torch.no_grad()
def rollout_with_kl(
    predict: Predict, reference: Predict, levels: list[Step], x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The clean latents of one rollout, and each path's KL to the reference model, (batch,)."""
    kl = torch.zeros(len(x))
    for level in levels:
        velocity = predict(x, level.timestep)
        kl += level.kl(x, velocity, reference(x, level.timestep))
        x = level.mean(x, velocity) + level.sigma * torch.randn(x.shape, generator=generator)
    return x, kl
