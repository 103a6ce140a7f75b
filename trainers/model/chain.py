"""The sampler as a Markov chain: every step a Gaussian, affine in the state and in the model's prediction.

x_next ~ N(mean, sigma^2 I),   mean = keep * x + gain * prediction,   x0 = x0_keep * x + x0_gain * prediction

with numbers that do not depend on the policy. DDIM for eps and v models and the flow models' SDE all have this form, so
likelihood, KL and their gradients are written once. Sums run over all dimensions of one sample unless a name says mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...blend_core.errors import BlendError
from ...blend_core.parameterization import x0_map


@dataclass(frozen=True)
class Step:
    """One step of a sampler. timestep: the model's own clock.  sigma: standard deviation of the noise it adds.

    signal, noise: the state before the step is signal * x0 + noise * n.
    """

    timestep: float
    keep: float
    gain: float
    sigma: float
    x0_keep: float
    x0_gain: float
    signal: float
    noise: float

    def mean(self, x: Tensor, prediction: Tensor) -> Tensor:
        """E[x_next | x], shaped as x (batch, ...)."""
        return self.keep * x + self.gain * prediction

    def x0(self, x: Tensor, prediction: Tensor) -> Tensor:
        """The clean latent that the prediction stands for."""
        return self.x0_keep * x + self.x0_gain * prediction

    def diffused(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(x, target): the noised latent, and the prediction that reads exactly `clean` out of it."""
        x = self.signal * clean + self.noise * noise
        return x, (clean - self.x0_keep * x) / self.x0_gain

    def log_prob(self, following: Tensor, mean: Tensor) -> Tensor:
        """log N(following; mean, sigma^2 I), summed over dimensions, (batch,)."""
        dimensions = following[0].numel()
        squares = (following - mean).square().flatten(1).sum(1)
        return -squares / (2 * self.sigma**2) - dimensions * (math.log(self.sigma) + math.log(2 * math.pi) / 2)

    def kl(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """KL(step || reference's step) = kl_factor * |prediction - reference|^2, summed over dimensions, (batch,)."""
        return self.kl_factor * (prediction - reference).square().flatten(1).sum(1)

    @property
    def kl_factor(self) -> float:
        """gain^2 / (2 sigma^2): what a unit of squared difference in the prediction costs, in nats."""
        return self.gain**2 / (2 * self.sigma**2)


def ddim_steps(scheduler: Any, steps: int, eta: float) -> list[Step]:
    """DDIM (arXiv 2010.02502, eq. 12) of diffusers' DDIMScheduler, for models that predict eps or v.

    With a = alpha_bar now and p = alpha_bar after the step: sigma^2 = eta^2 (1 - p) / (1 - a) (1 - a / p),
    mean = sqrt(p) x0 + sqrt(1 - p - sigma^2) eps. Raises BlendError for a scheduler whose steps are no such Gaussians.
    """
    check_ddim(scheduler, steps)
    scheduler.set_timesteps(steps)
    jump = scheduler.config.num_train_timesteps // steps
    abars = scheduler.alphas_cumprod.double()
    chain = []
    for timestep in scheduler.timesteps.tolist():
        a = abars[timestep].item()
        before = timestep - jump
        p = abars[before].item() if before >= 0 else float(scheduler.final_alpha_cumprod)
        sigma = eta * math.sqrt(max((1 - p) / (1 - a) * (1 - a / p), 0.0))
        chain.append(_ddim_step(timestep, a, p, sigma, scheduler.config.prediction_type))
    return chain


def _ddim_step(timestep: int, a: float, p: float, sigma: float, kind: str) -> Step:
    signal, noise = math.sqrt(a), math.sqrt(1 - a)
    x0 = x0_map(kind, signal, noise)
    eps = (0.0, 1.0) if kind == "epsilon" else (noise, signal)  # eps = sqrt(a) v + sqrt(1 - a) x
    first, second = math.sqrt(p), math.sqrt(max(1 - p - sigma**2, 0.0))
    keep, gain = (first * x0[i] + second * eps[i] for i in (0, 1))
    return Step(timestep, keep, gain, sigma, *x0, signal, noise)


def flow_steps(scheduler: Any, steps: int, noise_level: float, **schedule: Any) -> list[Step]:
    """The SDE with the marginals of a flow model's ODE (Flow-GRPO, arXiv 2505.05470, eq. 9), from s = 1 to 0.

    x = (1 - s) x0 + s n, v = n - x0, d = s_next - s < 0, g = noise_level sqrt(s / (1 - s)) (s_next instead of s in
    the denominator where s = 1): mean = x (1 + g^2 d / (2 s)) + v (1 + g^2 (1 - s) / (2 s)) d, sigma = g sqrt(-d).
    noise_level 0 is the ODE. scheduler: diffusers' FlowMatchEulerDiscreteScheduler, whose sigmas are s.  schedule: what
    the model's pipeline tells the scheduler next to the number of steps.
    """
    scheduler.set_timesteps(steps, **schedule)
    levels = [*scheduler.sigmas.double().tolist()]
    return [
        _flow_step(timestep, now, after, noise_level)
        for timestep, now, after in zip(scheduler.timesteps.tolist(), levels[:-1], levels[1:], strict=True)
    ]


def _flow_step(timestep: float, s: float, after: float, noise_level: float) -> Step:
    d = after - s
    g = noise_level * math.sqrt(s / (1 - (s if s < 1 else after)))
    keep = 1 + g**2 * d / (2 * s)
    gain = (1 + g**2 * (1 - s) / (2 * s)) * d
    return Step(timestep, keep, gain, g * math.sqrt(-d), *x0_map("flow", 1 - s, s), 1 - s, s)


def check_ddim(scheduler: Any, steps: int) -> None:
    """Raise BlendError unless the scheduler's DDIM steps are the Gaussians above."""
    config = scheduler.config
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise BlendError(
            f"the base model predicts {config.prediction_type!r}, expected epsilon or v_prediction. Choose "
            "another base."
        )
    changed = [name for name in ("clip_sample", "thresholding") if config.get(name)]
    if changed:
        raise BlendError(
            f"the base model's scheduler has {changed[0]} on: its steps are not the Gaussians that likelihood and KL "
            f"are computed from. Set {changed[0]} to false in scheduler/scheduler_config.json."
        )
    if not 1 <= steps <= config.num_train_timesteps or config.num_train_timesteps % steps:
        raise BlendError(
            f"sampling.steps is {steps}, expected a divisor of the model's {config.num_train_timesteps} timesteps, "
            "such as 10, 20, 25, 40 or 50."
        )


def check_noise(steps: Sequence[Step]) -> None:
    """Raise BlendError where a step adds no noise: it has no likelihood, and its KL is infinite."""
    silent = [i for i, step in enumerate(steps) if step.sigma <= 0]
    if not silent:
        return
    if len(silent) == len(steps):
        raise BlendError(
            "the sampler adds no noise (sampling.eta or sampling.noise_level is 0), so no step has a likelihood and "
            "the KL is not defined. Set sampling.eta to 1 (flow models: sampling.noise_level to 0.7)."
        )
    raise BlendError(
        f"step {silent[0] + 1} of {len(steps)} adds no noise, so its KL is infinite. In the base model's "
        "scheduler/scheduler_config.json set steps_offset to 1 and set_alpha_to_one to false, as Stable Diffusion has."
    )
