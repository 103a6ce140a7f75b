"""Apply a blend to a MODEL, and sample with it as KSampler does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from nodes import common_ksampler  # ComfyUI's own nodes module: ours is only ever imported relatively

from ...blend_core import BlendError, LoadReport, LoRABank, Plan, TargetIndex, resolve
from ...blend_core.estimators import Estimator, exact, merged
from ..types import KEY, LoRABlend, RewardLoRA
from .networks.targets import target_index
from .networks.whole_models import WholeModels
from .run import Record, RunSettings, Steering
from .wrappers import Wrappers

log = logging.getLogger(__name__)

EXECUTIONS = ("auto", "batched", "sequential")
SAMPLERS = tuple(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)
FINE = 64  # steps at which a schedule is looked at before the run's own number is known


@dataclass(frozen=True)
class AppliedBlend:
    """A blended model and how its bases matched."""

    model: comfy.model_patcher.ModelPatcher
    blend: LoRABlend
    reports: tuple[LoadReport | str, ...]
    wrappers: Wrappers

    @property
    def report(self) -> str:
        """The formula, the load reports and what whole models take, as the nodes show them."""
        job, last = self.wrappers.settings.job, self.wrappers.last
        formula = self.blend.formula(job.steps or last.steps)
        lines = [*self._slower(), *([str(job)] if job.steps else []), *last.lines]
        return "\n".join([formula, *map(str, self.reports), *lines])

    def _slower(self) -> list[str]:
        """What the kinds that are no plain LoRA cost."""
        bank = self.wrappers.bank
        if not bank.slow:
            return []
        return [
            f"slower than plain LoRA: {bank.nbytes / 2**20:.1f} MB of factors, and in every pass differences of up to "
            f"{bank.transient_bytes / 2**20:.1f} MB, one layer at a time"
        ]


@dataclass(frozen=True)
class RunResult:
    """What a sampling run gave.

    latent: ComfyUI's LATENT.  report: for the node, see AppliedBlend.  plan, steering: of the run, None where there was
    nothing to sample (denoise 0).  calls: of the guided model.
    """

    latent: dict
    report: str
    plan: Plan | None
    steering: Steering | None
    calls: int

    @classmethod
    def of(cls, latent: dict, applied: AppliedBlend) -> RunResult:
        """The result of the run that `applied` has just made."""
        last = applied.wrappers.last
        return cls(latent, applied.report, last.plan, last.steering, last.calls)


def sample(
    model,
    blend: LoRABlend,
    estimator: Estimator,
    execution: str,
    latent_image: dict,
    seed: int,
    record: Record | None = None,
    steered: Callable[[int], Steering] | None = None,
    **ksampler,
) -> RunResult:
    """KSampler with a blend. record, steered: see RunSettings; the latent is the same with a record and without."""
    indices = latent_image.get("batch_index")
    applied = apply_blend(
        model, blend, estimator, execution, seed, image_indices=indices, steered=steered, record=record
    )
    (latent,) = common_ksampler(applied.model, seed, latent=latent_image, **ksampler)
    return RunResult.of(latent, applied)


def apply_blend(
    model, blend: LoRABlend, estimator: Estimator, execution: str, seed: int, **settings
) -> AppliedBlend:
    """A clone of `model` that predicts `blend`; `settings` are the other fields of RunSettings.

    Raises BlendError for LoRAs that do not fit, or a model that is blended already.
    """
    if model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        raise BlendError(
            "this model is blended already. Put all reward LoRAs into one Blend Weights node, "
            "or connect the model from before Apply Blend."
        )
    run_settings = RunSettings(blend, estimator, execution, seed, **settings)
    bank, load_reports = _bank(blend, target_index(model.model), every=run_settings.record is not None)
    whole = WholeModels(blend.bases, model)
    reports = (*load_reports, *whole.report)
    for report in reports:
        log.info("%s", report)
    wrappers = Wrappers(bank, whole, run_settings, _most_per_pass(blend, estimator))
    patched = model.clone()
    wrappers.install(patched)
    if bank.names:
        # ComfyUI loads, counts and evicts the factors with the model
        patched.set_additional_models(KEY, [_patcher(bank, model.load_device, model.offload_device)])
    whole.attach(patched)
    return AppliedBlend(patched, blend, reports, wrappers)


def _patcher(bank: LoRABank, load_device: torch.device, offload_device: torch.device):
    """What ComfyUI manages the factors by. For a model on several cards it makes each card's copy of them."""
    factors = comfy.model_patcher.CoreModelPatcher(bank, load_device, offload_device)
    factors.cached_patcher_init = (lambda: _patcher(bank.copied(), load_device, offload_device), ())
    return factors


def _bank(blend: LoRABlend, index: TargetIndex, every: bool) -> tuple[LoRABank, list[LoadReport]]:
    """The factors of a blend's LoRAs, nothing for its whole models, and how the LoRAs matched.

    every: also of bases that have a coefficient at no time.
    """
    adapters, reports = [], []
    for basis, counts in zip(blend.bases, blend.counting, strict=True):
        changes = {}
        if isinstance(basis, RewardLoRA):
            changes, report = resolve(basis.adapter, index, allow_partial=basis.allow_partial)
            reports.append(report)
        adapters.append(changes if every or counts else {})
    return LoRABank(adapters), reports


def check_bases(blend: LoRABlend, estimator: Estimator) -> None:
    """Raise BlendError for bases that an evaluation cannot take."""
    whole = [basis.label for basis in blend.bases if not isinstance(basis, RewardLoRA)]
    if estimator is merged and whole:
        raise BlendError(
            f"{', '.join(whole)} is a whole model, and the evaluation merged adds LoRAs within one network. Choose "
            "exact, stratified or budget, or load a LoRA in its place."
        )


def _most_per_pass(blend: LoRABlend, estimator: Estimator) -> int:
    """The most variants that may share a pass at some step.

    Raises BlendError for coefficients, regions and bases that this evaluation cannot take, before anything runs.
    """
    check_bases(blend, estimator)
    if blend.regions and estimator is not exact:
        raise BlendError(
            "a region needs every reward at every step, but this evaluates one per step. Use Blended KSampler, or set "
            "the evaluation of Apply Blend to exact."
        )
    plans = [estimator(coefficients, FINE, [0]) for coefficients in blend.coefficients(FINE)]
    shared = blend.batched(FINE)
    return shared if estimator is exact else min(shared, plans[0].most_per_step)
