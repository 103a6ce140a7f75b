"""MSDDA on diffusers (arXiv 2604.14379): each reverse step the product of the steps of all bases (blend_core/gaussian).

    with fused(pipe, bank, plan, etas, generators):
        images = pipe(prompts, generator=generators).images

With the reverse steps N(mean_i, s_i^2 I) of the bases and coefficients c_i that sum to 1, the step is their normalised
product N(mean, s^2 I):

    1 / s^2 = sum_i c_i / s_i^2                   (1)
    mean = s^2 sum_i c_i mean_i / s_i^2           (2)

While open, the network predicts all bases side by side along the last axis, the pipeline's own guidance acts on each
of them, and the scheduler's `step` takes them apart again. Two schedulers are understood, both as x = a x0 + sigma n:

    DDIMScheduler                      eps, v or x0; x / sqrt(abar) is "ve" at sigma^2 = (1 - abar) / abar
    FlowMatchEulerDiscreteScheduler    velocity n - x0; "flow"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..blend_core import BlendError, LoRABank, Plan
from ..blend_core.gaussian import fused_step
from ..blend_core.plan import UNNAMED, Call, Evaluate
from .host import TimestepClock, blended, replaced
from .parameterization import KNOWN, Level, Reading, read_scheduler

_TINY = 1e-8  # the signal of pure noise, where schedules with zero terminal signal have 0


@contextmanager
def fused(
    pipe: DiffusionPipeline,
    bank: LoRABank,
    plan: Plan,
    etas: Sequence[float],
    generators: torch.Generator | Sequence[torch.Generator] | None,
    execution: str = "sequential",
) -> Iterator[None]:
    """While open, the pipeline takes MSDDA's step of `plan` (an exact one) in the place of its scheduler's.

    etas: one per variant, base first.  generators: where the steps' noise comes from, those of the pipeline's call.
    Guidance has to act on each element alone, as plain guidance does and guidance_rescale does not. Network and
    scheduler are left as they were found. Raises BlendError for a scheduler whose step is not known here.
    """
    check_scheduler(pipe)
    step = _FusedStep(pipe.scheduler, plan, etas, generators)
    side_by_side = _SideBySide(plan.variants, plan.weights)
    with blended(pipe, bank, side_by_side, execution), replaced(pipe.scheduler, "step", step):
        yield


def check_scheduler(pipe: DiffusionPipeline) -> None:
    """Raise BlendError where the pipeline's scheduler takes a step that is no Gaussian known here."""
    scheduler = pipe.scheduler
    if not isinstance(scheduler, KNOWN):
        raise BlendError(
            f"{type(pipe).__name__} samples with {type(scheduler).__name__}, but msdda fuses the steps of "
            "DDIMScheduler and FlowMatchEulerDiscreteScheduler. Set one of those, or choose the evaluation exact."
        )
    clips = [name for name in ("clip_sample", "thresholding") if scheduler.config.get(name)]
    if clips:
        raise BlendError(
            f"the scheduler has {clips[0]} on, which cuts predictions off, so that a step is no Gaussian around a mean "
            f"that msdda could fuse. Switch {clips[0]} off in the model's scheduler_config.json, or choose exact."
        )


class _SideBySide(Plan):
    """The predictions of all variants of a step, one after another along the last axis."""

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Call = UNNAMED) -> Tensor:
        """(rows, ..., k * width). The last axis, because pipelines cut and join predictions along all others."""
        variants, _ = self.active(step, images)
        return torch.cat(list(evaluate(variants)), dim=-1)


def fused_latents(
    latents: Tensor,
    denoised: Tensor | Sequence[Tensor],
    levels: tuple[Level, Level],
    etas: Sequence[float],
    coefficients: Sequence[float],
    family: str,
    noise: Callable[[], Tensor],
) -> Tensor:
    """Latents (batch, ...) after MSDDA's step: a draw from N(mean, s^2 I), (1) and (2), in blend_core/gaussian's x.

    denoised: (k, batch, ...), the guided prediction of x0 by every basis that counts.  levels: before the step and
    after it.  etas, coefficients: one per basis.  family: ve or flow.  noise(): standard normal, shaped as latents;
    called where the step adds noise.
    """
    before, after = levels
    sigmas = before.sigma(family), after.sigma(family)
    x, spread = fused_step(latents / before.scale(family), denoised, *sigmas, etas, coefficients, family)
    if spread > 0:
        x = x + spread * noise()
    return after.scale(family) * x


class _FusedStep:
    """The scheduler's `step`: guided predictions of all variants side by side in, the next latents out."""

    def __init__(self, scheduler, plan: Plan, etas: Sequence[float], generators):
        self.scheduler = scheduler
        self.plan = plan
        self.etas = etas
        self.generators = generators
        ddim = isinstance(scheduler, DDIMScheduler)
        self.family, self.levels = ("ve", _ddim_levels) if ddim else ("flow", _flow_levels)
        self.clock = TimestepClock(len(plan.variants))

    def __call__(self, model_output: Tensor, timestep, sample: Tensor, *_, return_dict: bool = True, **__):
        variants, coefficients = self.plan.active(self.clock.step(timestep))
        etas = [self.etas[variant] for variant in variants[:, 0].tolist()]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        predictions = torch.stack(model_output.to(dtype).chunk(len(variants), dim=-1))
        latents, reading = sample.to(dtype), read_scheduler(self.scheduler, timestep)
        denoised, levels = reading.denoised(latents, predictions), self.levels(self.scheduler, reading, timestep)
        following = fused_latents(
            latents, denoised, levels, etas, coefficients.tolist(), self.family, lambda: self.noise(sample)
        ).to(sample.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)

    def noise(self, sample: Tensor) -> Tensor:
        """Standard normal noise like `sample`, from the generators of the pipeline's call."""
        return randn_tensor(sample.shape, self.generators, sample.device, sample.dtype)


def _ddim_levels(scheduler: DDIMScheduler, reading: Reading, timestep) -> tuple[Level, Level]:
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = (scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod).item()
    return Level(max(reading.signal, _TINY), reading.noise), Level(math.sqrt(after), math.sqrt(1 - after))


def _flow_levels(scheduler: FlowMatchEulerDiscreteScheduler, reading: Reading, timestep) -> tuple[Level, Level]:
    after = scheduler.sigmas[scheduler.index_for_timestep(timestep) + 1].item()
    return Level(reading.signal, reading.noise), Level(1 - after, after)
