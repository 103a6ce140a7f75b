"""MSDDA as a sampler of ComfyUI: every basis takes a reverse step of its own, and blend_core/gaussian fuses them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom
from torch import Tensor
from tqdm.auto import trange

from ...blend_core import BlendError, Plan
from ...blend_core.blend import parse_numbers
from ...blend_core.estimators import exact
from ...blend_core.gaussian import basis_etas, fused_step
from ...blend_core.regions import PaintedPlan
from ..types import LoRABlend
from .apply import RunResult, apply_blend
from .run import BlendedRun, blended_run


def msdda_sampler(etas: str, base_eta: float) -> comfy.samplers.KSAMPLER:
    """ComfyUI's SAMPLER; see sample_msdda."""
    return comfy.samplers.KSAMPLER(sample_msdda, {"etas": etas, "base_eta": base_eta})


def sample_fused(
    model,
    blend: LoRABlend,
    execution: str,
    latent_image: dict,
    seed: int,
    steps: int,
    cfg: float,
    scheduler: str,
    positive,
    negative,
    denoise: float,
    etas: str,
    base_eta: float,
) -> RunResult:
    """KSampler under MSDDA, through ComfyUI's own SamplerCustom."""
    indices = latent_image.get("batch_index")
    applied = apply_blend(model, blend, exact, execution, seed, image_indices=indices)
    sigmas = BasicScheduler.execute(applied.model, scheduler, steps, denoise).result[0]
    sampler = msdda_sampler(etas, base_eta)
    latent = SamplerCustom.execute(
        applied.model, True, seed, cfg, positive, negative, sampler, sigmas, latent_image
    ).result[0]
    return RunResult.of(latent, applied)


@torch.no_grad()
def sample_msdda(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict,
    callback=None,
    disable: bool | None = None,
    noise_sampler=None,
    etas: str = "",
    base_eta: float = 1.0,
) -> Tensor:
    """The sampler function, called by ComfyUI's KSAMPLER; the blend is the one of the model that it samples.

    x: (batch, ...).  sigmas: (steps + 1,), falling.  etas: one number per reward LoRA; empty: as files say.
    Guidance acts inside each basis, because a basis's step is that of its guided prediction. Under regions every latent
    position has its own coefficients, and so a fusion of its own. Raises BlendError for a model that is not blended,
    and for a blend that is not evaluated exactly.
    """
    run = _exact_run(extra_args)
    numbers = _numbers(run, etas, base_eta)
    family = "flow" if is_flow(model) else "ve"
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=extra_args.get("seed"))
    ones = x.new_ones([x.shape[0]])
    for i in trange(len(sigmas) - 1, disable=disable):
        now, after = sigmas[i], sigmas[i + 1]
        etas_now = [numbers[variant] for variant in run.plan.active(i)[0][:, 0].tolist()]
        coefficients = _coefficients(run.plan, i, x)
        predictions = run.separately(i, partial(model, x, now * ones, **extra_args))
        if callback is not None:
            denoised = sum(c * d for c, d in zip(coefficients, predictions, strict=True))
            callback({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        x, spread = fused_step(x, predictions, now.item(), after.item(), etas_now, coefficients, family)
        if after > 0:
            x = x + spread * noise_sampler(now, after)
    return x


def _exact_run(extra_args: dict) -> BlendedRun:
    run = blended_run(extra_args.get("model_options", {}))
    if run is None:
        raise BlendError(
            "MSDDA fuses the steps of a blend's bases, but the model it samples has no blend. Put Apply Blend before "
            "the guider, or use MSDDA KSampler."
        )
    if not run.settings.exact:
        raise BlendError(
            "MSDDA needs the prediction of every basis at every step, but Apply Blend evaluates one per step. Set its "
            "evaluation to exact."
        )
    return run


def _coefficients(plan: Plan, step: int, x: Tensor) -> list[float] | list[Tensor]:
    """Of each variant that counts at `step`: a number, or under regions a map that broadcasts to x."""
    if isinstance(plan, PaintedPlan):
        return list(plan.coefficients(step, x, len(x)))
    return plan.active(step)[1].tolist()


def _numbers(run: BlendedRun, etas: str, base_eta: float) -> tuple[float, ...]:
    """eta of each variant, base first."""
    typed = parse_numbers(etas, "etas", "reward LoRA", "1, 0.6")
    return basis_etas(typed, [basis.eta for basis in run.settings.blend.bases], base_eta)


def is_flow(model) -> bool:
    """Whether the model that a sampler function is given has rectified flow's noise."""
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    return isinstance(sampling, comfy.model_sampling.CONST)


def describe_etas(bases: Sequence, etas: str) -> str:
    """Where each basis's eta comes from, for the node."""
    if etas.strip():
        return f"eta: {etas}"
    stated = (f"{basis.label} {basis.eta:g}" if basis.eta else f"{basis.label} 1 (not stated)" for basis in bases)
    return "eta: " + ", ".join(stated)
