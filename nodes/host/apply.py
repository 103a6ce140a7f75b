"""Blending inside ComfyUI's sampling, by the wrappers of a ModelPatcher.

A blended MODEL is a clone with four wrappers; nothing of the model itself is changed.

    PREPARE_SAMPLING   asks for the memory of a k-fold batch, where that fits
    OUTER_SAMPLE       makes the plan of this run and drops it afterwards, whatever happens in between
    PREDICT_NOISE      tells which step of the schedule is being evaluated
    APPLY_MODEL        evaluates the variants of the step and blends their denoised predictions

APPLY_MODEL returns denoised, which is affine in the network's output, and lies below guidance: what other packs do to
conditioning, attention or guidance sees the blend as if it were one model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

from nodes import common_ksampler  # ComfyUI's own nodes module: ours is only ever imported relatively

from ...blend_core import (
    BlendError,
    Job,
    LoadReport,
    LoRABank,
    Plan,
    TargetIndex,
    exact,
    image_seed,
    merged,
    resolve,
)
from ...blend_core.adapters.foreign import first_of
from ...blend_core.estimators import Estimator
from ...blend_core.regions import painted
from ..types import KEY, LoRABlend, RewardLoRA
from .other_packs import refuse, separates
from .row_layout import keeps_rows_apart, mixes_images
from .run import MEMORY_MARGIN, BlendedRun, Steering, blended_run
from .steps import StepClock
from .targets import target_index
from .whole_models import WholeModels

log = logging.getLogger(__name__)

EXECUTIONS = ("auto", "batched", "sequential")
_ALONE = Job()
FINE = 64  # steps at which a schedule is looked at before the run's own number is known
Record = Callable[[int, float, torch.Tensor, list[torch.Tensor], list[float]], None]
"""record(step, sigma, x, denoised, coefficients): the guided prediction of every variant at x, base first."""


@dataclass(frozen=True)
class AppliedBlend:
    """A blended model and how its bases matched."""

    model: comfy.model_patcher.ModelPatcher
    blend: LoRABlend
    reports: tuple[LoadReport | str, ...]
    hooks: _Hooks

    @property
    def report(self) -> str:
        """The formula, the load reports and what whole models take, as the nodes show them."""
        formula = self.blend.describe() if self.blend.regions else self.blend.schedule.formula()
        return "\n".join([formula, *map(str, self.reports), *self._slower(), *self._shared(), *self.hooks.lines])

    def _shared(self) -> list[str]:
        """Which part of a job the runs are."""
        return [str(self.hooks.job)] if self.hooks.job.steps else []

    def _slower(self) -> list[str]:
        """What the kinds that are no plain LoRA cost."""
        bank = self.hooks.bank
        if not bank.slow:
            return []
        return [
            f"slower than plain LoRA: {bank.nbytes / 2**20:.1f} MB of factors, and in every pass differences of up to "
            f"{bank.transient_bytes / 2**20:.1f} MB, one layer at a time"
        ]

    @property
    def plan(self) -> Plan | None:
        """The plan of the last run; None before one."""
        return self.hooks.plan

    @property
    def calls(self) -> int:
        """Calls of the guided model in the last run."""
        return self.hooks.calls

    @property
    def steering(self) -> Steering | None:
        """What steered the last run; None before one."""
        return self.hooks.steering


def sample(
    model,
    blend: LoRABlend,
    estimator: Estimator,
    execution: str,
    latent_image: dict,
    seed: int,
    record: Record | None = None,
    steered: Callable[[], Steering] | None = None,
    **ksampler,
):
    """KSampler with a blend. Returns the latent and the AppliedBlend it was made with.

    record: called at the first evaluation of every step; the latent is the same with it and without.  steered: see
    apply_blend.
    """
    indices = latent_image.get("batch_index")
    applied = apply_blend(model, blend, estimator, execution, seed, indices, steered, every=record is not None)
    applied.hooks.record = record
    (latent,) = common_ksampler(applied.model, seed, latent=latent_image, **ksampler)
    return latent, applied


def apply_blend(
    model,
    blend: LoRABlend,
    estimator: Estimator,
    execution: str,
    seed: int,
    image_indices: list[int] | None = None,
    steered: Callable[[], Steering] | None = None,
    every: bool = False,
    job: Job = _ALONE,
) -> AppliedBlend:
    """A clone of `model` that predicts `blend`.

    image_indices: the number of each image within the whole job, where the latents are a part of it; it decides the
    choices of one-variant evaluations.  steered: makes what changes the plan of a run while it runs; called once per
    run.  every: whether bases without a coefficient may be evaluated too; else they take no memory.  job: what a run is
    a part of; schedules and choices count its steps. Raises BlendError for LoRAs that do not fit, or a model that is
    blended already.
    """
    if model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        raise BlendError(
            "this model is blended already. Put all reward LoRAs into one Blend Weights node, "
            "or connect the model from before Apply Blend."
        )
    bank, load_reports = _bank(blend, target_index(model.model), every)
    whole = WholeModels(blend.bases, model)
    reports = (*load_reports, *whole.report)
    for report in reports:
        log.info("%s", report)
    _check_evaluation(blend, estimator)
    hooks = _Hooks(bank, whole, blend, estimator, execution, seed, image_indices, steered, job)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, hooks.prepare_sampling)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, hooks.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, hooks.predict_noise)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, hooks.apply_model)
    if bank.names:
        # ComfyUI loads, counts and evicts the factors with the model
        patched.set_additional_models(KEY, [_patcher(bank, model.load_device, model.offload_device)])
    whole.attach(patched)
    return AppliedBlend(patched, blend, reports, hooks)


def _patcher(bank: LoRABank, load_device: torch.device, offload_device: torch.device):
    """What ComfyUI manages the factors by. For a model on several cards it makes each card's copy of them."""
    factors = comfy.model_patcher.CoreModelPatcher(bank, load_device, offload_device)
    factors.cached_patcher_init = (lambda: _patcher(bank.copied(), load_device, offload_device), ())
    return factors


def _bank(blend: LoRABlend, index: TargetIndex, every: bool) -> tuple[LoRABank, list[LoadReport]]:
    """The factors of a blend's LoRAs, nothing for its whole models and unused bases, and how the LoRAs matched."""
    adapters, reports = [], []
    for basis, counts in zip(blend.bases, blend.counting, strict=True):
        factors = {}
        if isinstance(basis, RewardLoRA):
            factors, report = resolve(basis.adapter, index, allow_partial=basis.allow_partial)
            reports.append(report)
        adapters.append(factors if every or counts else {})
    return LoRABank(adapters), reports


def _check_evaluation(blend: LoRABlend, estimator: Estimator) -> None:
    """Refuse coefficients, regions and bases that this evaluation cannot take, before anything runs."""
    whole = [basis.label for basis in blend.bases if not isinstance(basis, RewardLoRA)]
    if estimator is merged and whole:
        raise BlendError(
            f"{', '.join(whole)} is a whole model, and the evaluation merged adds LoRAs within one network. Choose "
            "exact, stratified or budget, or load a LoRA in its place."
        )
    if blend.regions and estimator is not exact:
        raise BlendError(
            "a region needs every reward at every step, but this evaluates one per step. Use Blended KSampler, or set "
            "the evaluation of Apply Blend to exact."
        )
    for layer in blend.layers(FINE):
        estimator(layer, FINE, [0])


class _Hooks:
    """The wrappers of one blended model. The state of a run is in the run's own options; `plan` is kept to be read."""

    def __init__(
        self, bank, whole, blend: LoRABlend, estimator: Estimator, execution, seed, image_indices, steered, job: Job
    ):
        self.job = job
        self.bank = bank
        self.whole = whole
        self.blend = blend
        self.estimator = estimator
        self.plan: Plan | None = None
        self.record: Record | None = None
        self.calls = 0
        self.execution = execution
        self.seed = seed
        self.image_indices = image_indices
        self.steered = steered
        self.steering: Steering | None = None
        self.unused: dict[str, list[str]] = {}  # of the last run, see BlendedRun.unused
        self.read: list[str] = []  # the same, see BlendedRun.read

    @property
    def lines(self) -> list[str]:
        """Which way changes took in the last run, and what had no effect in it, for people."""
        read = (
            f"changed through their weights, which this network reads without calling the layer: {len(self.read)} "
            f"modules, {first_of(self.read)}; all others through their outputs"
        )
        return [read, *self.unused_lines] if self.read else self.unused_lines

    @property
    def unused_lines(self) -> list[str]:
        """What had no effect in the last run."""
        return [
            f"{name}: {len(modules)} modules of the model had no part in this run, and their changes no effect: "
            f"{first_of(modules)}"
            for name, modules in self.unused.items()
        ]

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        refuse(executor.class_obj.model_options)
        options = executor.class_obj.model_options["transformer_options"]
        seeds = self._seeds(noise, sigmas, executor.class_obj.model_patcher.model)
        plan = self._plan(max(len(sigmas) - 1, 1), seeds, noise)
        sampler_function = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
        options[KEY] = BlendedRun(
            plan,
            StepClock(sigmas, sampler_function),
            self.bank,
            self.whole.networks,
            self.execution,
            self.blend,
            self.estimator,
        )
        self.plan, self.calls = plan, 0
        self.steering = self.steered() if self.steered else None
        options[KEY].steering = self.steering
        try:
            with self.whole.running():
                result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            self.unused, self.read = options[KEY].unused(), options[KEY].read()
            for line in self.unused_lines:
                log.warning("%s", line)
            return result
        finally:
            options.pop(KEY).release()
            plan.release()  # the node's output, and with it the plan, may be cached for long

    def _seeds(self, noise: torch.Tensor, sigmas: torch.Tensor, model: torch.nn.Module) -> list[int]:
        """The seed of every image's choices; one for all where the images of a batch change each other.

        A run without noise goes on where another one ended, mostly at the same seed: its choices are not to repeat.
        """
        goes_on = not self.job.steps and not any(bool(each.any()) for each in _tensors(noise))
        part = f" from {float(sigmas[0]):.3g}" if goes_on and len(sigmas) else ""
        images = [0] * noise.shape[0] if mixes_images(model) else self.image_indices or range(noise.shape[0])
        return [image_seed(self.seed, index, part) for index in images]

    def _layers(self, steps: int) -> list[torch.Tensor]:
        """Coefficients of a run of `steps` steps, see LoRABlend.layers."""
        part = slice(self.job.start, self.job.start + steps)
        return [layer[part] for layer in self.blend.layers(self.job.whole(steps))]

    def _plan(self, steps: int, seeds: list[int], noise: torch.Tensor) -> Plan:
        if not self.blend.regions:
            whole = self.job.whole(steps)
            return self.estimator(self.blend.layers(whole)[0], whole, seeds).part(self.job.start, steps)
        if getattr(noise, "is_nested", False) or noise.dim() < 4:
            raise BlendError(
                "the latents have no height and width that a region could be painted on. Remove the region."
            )
        masks = [mask for mask, _ in self.blend.regions]
        return painted(self._layers(steps), masks, tuple(noise.shape[-2:]), len(seeds))

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        exactly = self.estimator is exact  # regions, which need the variants of all layers, are exact
        layers = self.blend.layers(FINE)
        k = self.blend.batched(FINE)
        k = k if exactly else min(k, self.estimator(layers[0], FINE, [0]).most_per_step)
        options = model.model_options.get("transformer_options", {})
        apart = keeps_rows_apart(model.model) is False or separates(model.model, options)
        if self.execution != "sequential" and k > 1 and not apart:
            batch = [noise_shape[0] * k, *noise_shape[1:]]
            needed = model.model_size() + self.whole.size + model.model.memory_required([batch[0] * 2, *batch[1:]])
            if needed * MEMORY_MARGIN < comfy.model_management.get_total_memory(model.load_device):
                noise_shape = batch  # else weights would be offloaded for a batch that is split anyway
        prepared = executor(model, noise_shape, conds, *args, **kwargs)
        run = blended_run(kwargs.get("model_options") or {})
        if run is not None:
            run.exits.enter_context(run.preparing(prepared[0]))  # the model that is sampled, which may be another one
        return prepared

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider = executor.class_obj
        run = guider.model_options["transformer_options"][KEY]
        before = run.step
        run.advance(timestep)
        self.calls += 1
        if self.record is not None and run.step not in run.recorded:
            run.recorded.add(run.step)
            denoised = run.every_variant(lambda: executor(x, timestep, model_options or {}, seed))
            coefficients = self._layers(len(run.plan.variants))[0][run.step].tolist()
            self.record(run.step, float(timestep.max()), x, denoised, coefficients)
        if run.steering is None:
            return executor(x, timestep, model_options or {}, seed)
        if run.step > before:
            run.steering(run, guider.inner_model.process_latent_out(run.denoised.float()))
            _load_again(guider, x)
        run.denoised = executor(x, timestep, model_options or {}, seed)
        return run.denoised

    def apply_model(self, executor, *args, **kwargs):
        *inputs, options = args  # x, sigma, c_concat, c_crossattn, control, transformer_options
        return options[KEY].predict(executor, {"args": inputs, "kwargs": kwargs}, options)


def _tensors(noise: torch.Tensor) -> list[torch.Tensor]:
    """Latents of several kinds come as one."""
    return noise.unbind() if getattr(noise, "is_nested", False) else [noise]


def _load_again(guider, x: torch.Tensor) -> None:
    """Load what the run needs: decoding and scoring between two steps may have moved it off the card."""
    rows = [2 * x.shape[0], *x.shape[1:]]  # conditional and unconditional, as ComfyUI counts before a run
    comfy.model_management.load_models_gpu(
        [guider.model_patcher, *guider.loaded_models], memory_required=guider.model_patcher.memory_required(rows)
    )
