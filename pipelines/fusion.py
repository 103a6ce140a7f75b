"""MSDDA on diffusers: every basis takes a reverse step of its own, and blend_core/gaussian fuses them.

    with fused(pipe, bank, plan, etas, generators):
        images = pipe(prompts, generator=generators).images

While open, the network predicts all bases side by side along the last axis, the pipeline's own guidance acts on each
of them, and the scheduler's `step` takes them apart again. Two schedulers are understood, both as x = a x0 + sigma n:

    DDIMScheduler                      eps, v or x0; x / sqrt(abar) is "ve" at sigma^2 = (1 - abar) / abar
    FlowMatchEulerDiscreteScheduler    velocity n - x0; "flow"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..blend_core import BlendError, LoRABank, Plan
from ..blend_core.gaussian import fused_step
from ..blend_core.plan import UNNAMED, Call, Evaluate
from .host import TimestepClock, blended
from .parameterization import KNOWN, read_scheduler

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
    own = pipe.scheduler.__dict__
    former = own.get("step")
    with blended(pipe, bank, _SideBySide(plan.variants, plan.weights), execution):
        own["step"] = _FusedStep(pipe.scheduler, plan, etas, generators)
        try:
            yield
        finally:
            if former is None:
                del own["step"]
            else:
                own["step"] = former


def check_scheduler(pipe: DiffusionPipeline) -> None:
    """Raise BlendError where the pipeline's scheduler takes a step that is no Gaussian known here."""
    scheduler = pipe.scheduler
    if not isinstance(scheduler, KNOWN):
        raise BlendError(
            f"{type(pipe).__name__} samples with {type(scheduler).__name__}, but msdda fuses the steps of "
            "DDIMScheduler and FlowMatchEulerDiscreteScheduler. Set one of those, or choose the method exact."
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


@dataclass(frozen=True)
class _State:
    """A scheduler's step in blend_core/gaussian's words: x and denoised (k, ...) at sigma, and how to go back.

    scale: what x at sigma_next is multiplied by to be the pipeline's latents.
    """

    x: Tensor
    denoised: Tensor
    sigma: float
    sigma_next: float
    family: str
    scale: float = 1.0


class _FusedStep:
    """The scheduler's `step`: guided predictions of all variants side by side in, the next latents out."""

    def __init__(self, scheduler, plan: Plan, etas: Sequence[float], generators):
        self.scheduler = scheduler
        self.plan = plan
        self.etas = etas
        self.generators = generators
        self.read = _ddim if isinstance(scheduler, DDIMScheduler) else _flow
        self.clock = TimestepClock(len(plan.variants))

    def __call__(self, model_output: Tensor, timestep, sample: Tensor, *_, return_dict: bool = True, **__):
        variants, coefficients = self.plan.active(self.clock.step(timestep))
        etas = [self.etas[variant] for variant in variants[:, 0].tolist()]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        predictions = torch.stack(model_output.to(dtype).chunk(len(variants), dim=-1))
        state = self.read(self.scheduler, predictions, timestep, sample.to(dtype))
        x, spread = fused_step(
            state.x, state.denoised, state.sigma, state.sigma_next, etas, coefficients.tolist(), state.family
        )
        if spread > 0:
            x = x + spread * randn_tensor(sample.shape, self.generators, sample.device, sample.dtype)
        latents = (state.scale * x).to(sample.dtype)
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)


def _ddim(scheduler: DDIMScheduler, predictions: Tensor, timestep, x: Tensor) -> _State:
    reading = read_scheduler(scheduler, timestep)
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = (scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod).item()
    signal = max(reading.signal, _TINY)
    sigma_next = math.sqrt(1 - after) / math.sqrt(after)
    denoised = reading.denoised(x, predictions)
    return _State(x / signal, denoised, reading.noise / signal, sigma_next, "ve", math.sqrt(after))


def _flow(scheduler: FlowMatchEulerDiscreteScheduler, predictions: Tensor, timestep, x: Tensor) -> _State:
    reading = read_scheduler(scheduler, timestep)
    after = scheduler.sigmas[scheduler.index_for_timestep(timestep) + 1].item()
    return _State(x, reading.denoised(x, predictions), reading.noise, after, "flow")
