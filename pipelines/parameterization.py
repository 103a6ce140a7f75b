"""The noise level of a diffusers scheduler at a timestep, and x0 from the model's predictions there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..blend_core import BlendError
from ..blend_core.parameterization import x0_map

KNOWN = (DDIMScheduler, FlowMatchEulerDiscreteScheduler)


@dataclass(frozen=True)
class Level:
    """A noise level: latents = signal * x0 + noise * n.

    blend_core/gaussian has x = latents / scale at sigma = noise / scale, in a family of noise, ve or flow.
    """

    signal: float
    noise: float

    def scale(self, family: str) -> float:
        """What blend_core/gaussian's x is multiplied by to be latents."""
        return 1.0 if family == "flow" else self.signal

    def sigma(self, family: str) -> float:
        """blend_core/gaussian's noise level."""
        return self.noise / self.scale(family)


@dataclass(frozen=True)
class Reading:
    """x = signal * x0 + noise * n, and denoised = keep * x + gain * prediction."""

    signal: float
    noise: float
    keep: float
    gain: float

    def denoised(self, x: Tensor, prediction: Tensor) -> Tensor:
        """The estimate of x0 that a prediction stands for, in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.keep * x.to(dtype) + self.gain * prediction.to(dtype)

    def prediction(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The prediction that stands for an estimate of x0, in x's dtype."""
        return ((denoised - self.keep * x.to(denoised.dtype)) / self.gain).to(x.dtype)


def read_scheduler(scheduler, timestep: Tensor | float) -> Reading:
    """The reading before the step at `timestep`, in the scheduler's unit.

    Raises BlendError for a scheduler that is not among KNOWN.
    """
    value = first_of(timestep)
    if isinstance(scheduler, DDIMScheduler):
        abar = scheduler.alphas_cumprod[int(value)].item()
        signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
        return Reading(signal, noise, *x0_map(scheduler.config.prediction_type, signal, noise))
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        noise = scheduler.sigmas[int((scheduler.timesteps - value).abs().argmin())].item()
        return Reading(1 - noise, noise, *x0_map("flow", 1 - noise, noise))
    raise BlendError(
        f"the pipeline samples with {type(scheduler).__name__}, but this evaluation knows the noise levels of "
        f"{' and '.join(kind.__name__ for kind in KNOWN)}. Set one of those, or choose the evaluation exact."
    )


def unit_of(scheduler, timestep: Tensor | float) -> float:
    """What a network's timestep, the first of a run, is to be multiplied by: Flux and its kin divide by 1000."""
    total = scheduler.config.num_train_timesteps
    first = scheduler.timesteps[scheduler.begin_index or 0].item()
    return total if first / first_of(timestep) > total**0.5 else 1.0


def first_of(timestep: Tensor | float) -> float:
    """The number in a timestep, which all rows share."""
    return float(torch.as_tensor(timestep).flatten()[0])
