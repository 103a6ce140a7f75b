"""The four wrappers that blend inside ComfyUI's sampling.

A blended MODEL is a clone with these wrappers; nothing of the model itself is changed. ComfyUI calls them in this
order:

    OUTER_SAMPLE       makes the plan of this run and drops it afterwards, whatever happens in between
    PREPARE_SAMPLING   asks for the memory of a k-fold batch, where that fits
    PREDICT_NOISE      tells which step of the schedule is being evaluated
    APPLY_MODEL        evaluates the variants of the step and blends their denoised predictions

APPLY_MODEL returns denoised, which is affine in the network's output, and lies below guidance: what other packs do to
conditioning, attention or guidance sees the blend as if it were one model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ...blend_core import BlendError, LoRABank, Plan
from ...blend_core.adapters.foreign import first_of
from ...blend_core.estimators import image_seed
from ...blend_core.regions import painted
from ..types import KEY
from .networks.other_packs import refuse, separates
from .networks.row_layout import keeps_rows_apart, mixes_images
from .networks.whole_models import WholeModels
from .private import is_nested, sampler_function_name
from .run import MEMORY_MARGIN, BlendedRun, RunSettings, Steering, blended_run
from .steps import StepClock

log = logging.getLogger(__name__)

@dataclass
class RunSummary:
    """What is left of a run: its plan, its steering, the calls of the guided model, and which way changes took.

    unused, read: see BlendedRun.
    """

    plan: Plan | None = None
    steering: Steering | None = None
    calls: int = 0
    unused: dict[str, list[str]] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Of the run; 0 where there was none."""
        return 0 if self.plan is None else len(self.plan.variants)

    @property
    def lines(self) -> list[str]:
        """Which way changes took, and what had no effect, for people."""
        read = (
            f"changed through their weights, which this network reads without calling the layer: {len(self.read)} "
            f"modules, {first_of(self.read)}; all others through their outputs"
        )
        return [read, *self.unused_lines] if self.read else self.unused_lines

    @property
    def unused_lines(self) -> list[str]:
        """What had no effect."""
        return [
            f"{name}: {len(modules)} modules of the model had no part in this run, and their changes no effect: "
            f"{first_of(modules)}"
            for name, modules in self.unused.items()
        ]


class Wrappers:
    """Those of one blended model. The state of a run is in the run's own options; `last` says what a run left."""

    def __init__(self, bank: LoRABank, whole: WholeModels, settings: RunSettings, most_per_pass: int):
        self.bank = bank
        self.whole = whole
        self.settings = settings
        self.most_per_pass = most_per_pass
        self.last = RunSummary()

    def install(self, patcher) -> None:
        """Put the wrappers into `patcher`, a clone that is nobody else's."""
        patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.prepare_sampling)
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.outer_sample)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict_noise)
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.apply_model)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """A run, from its plan to what it leaves."""
        guider, steps = executor.class_obj, max(len(sigmas) - 1, 1)
        refuse(guider.model_options)
        coefficients = self.settings.blend.coefficients(self.settings.job.whole(steps))
        plan = self._plan(coefficients, steps, self._seeds(noise, sigmas, guider.model_patcher.model), noise)
        steering = self.settings.steered(steps) if self.settings.steered else None
        run = BlendedRun(
            plan,
            coefficients[0][self.settings.job.part(steps)],
            StepClock(sigmas, sampler_function_name(sampler)),
            self.bank,
            self.whole.networks,
            self.settings,
        )
        self.last = RunSummary(plan, steering)
        options = guider.model_options["transformer_options"]
        options[KEY] = run
        try:
            with self.whole.running():
                result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            self.last.unused, self.last.read = run.unused(), run.read()
            for line in self.last.unused_lines:
                log.warning("%s", line)
            return result
        finally:
            del options[KEY]
            run.release()
            plan.release()  # the node's output, and with it the plan, may be cached for long

    def _seeds(self, noise: torch.Tensor, sigmas: torch.Tensor, model: torch.nn.Module) -> list[int]:
        """The seed of every image's choices; one for all where the images of a batch change each other.

        A run without noise goes on where another one ended, mostly at the same seed: its choices are not to repeat.
        """
        goes_on = not self.settings.job.steps and not any(bool(latents.any()) for latents in _tensors(noise))
        part = f" from {float(sigmas[0]):.3g}" if goes_on and len(sigmas) else ""
        indices = self.settings.image_indices or range(noise.shape[0])
        images = [0] * noise.shape[0] if mixes_images(model) else indices
        return [image_seed(self.settings.seed, index, part) for index in images]

    def _plan(self, coefficients: list[torch.Tensor], steps: int, seeds: list[int], noise: torch.Tensor) -> Plan:
        """The plan of a run of `steps` steps. coefficients: of the whole job, see LoRABlend.coefficients."""
        blend, job = self.settings.blend, self.settings.job
        if not blend.regions:
            return self.settings.estimator(coefficients[0], job.whole(steps), seeds).part(job.start, steps)
        if is_nested(noise) or noise.dim() < 4:
            raise BlendError(
                "the latents have no height and width that a region could be painted on. Remove the region."
            )
        masks, part = [mask for mask, _ in blend.regions], job.part(steps)
        return painted([table[part] for table in coefficients], masks, (noise.shape[-2], noise.shape[-1]), len(seeds))

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        """The memory of the largest pass, and the conditionings of every basis that prepares its own."""
        options = model.model_options.get("transformer_options", {})
        apart = keeps_rows_apart(model.model) is False or separates(model.model, options)
        if self.settings.execution != "sequential" and self.most_per_pass > 1 and not apart:
            batch = [noise_shape[0] * self.most_per_pass, *noise_shape[1:]]
            needed = model.model_size() + self.whole.size + model.model.memory_required([batch[0] * 2, *batch[1:]])
            if needed * MEMORY_MARGIN < comfy.model_management.get_total_memory(model.load_device):
                noise_shape = batch  # else weights would be offloaded for a batch that is split anyway
        prepared = executor(model, noise_shape, conds, *args, **kwargs)
        run = blended_run(kwargs.get("model_options") or {})
        if run is not None:
            run.exits.enter_context(run.preparing(prepared[0]))  # the model that is sampled, which may be another one
        return prepared

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """One evaluation of the guided model: recorded, steered, and blended below guidance."""
        guider = executor.class_obj
        run = guider.model_options["transformer_options"][KEY]
        begins = run.advance(timestep)
        self.last.calls += 1
        predict = partial(executor, x, timestep, model_options or {}, seed)
        if self.settings.record is not None and run.step not in run.recorded:
            run.recorded.add(run.step)
            coefficients = run.coefficients[run.step].tolist()
            predictions = run.every_variant(predict), coefficients, run.all_at_once(predict)
            self.settings.record(run.step, float(timestep.max()), x, *predictions)
        if self.last.steering is None:
            return predict()
        if begins:
            denoised = guider.inner_model.process_latent_out(run.denoised.float())
            run.plan = self.last.steering(run.step, denoised) or run.plan
            _load_again(guider, x)
        run.denoised = predict()
        return run.denoised

    def apply_model(self, executor, *args, **kwargs):
        """One call of the network below guidance."""
        *inputs, options = args  # x, sigma, c_concat, c_crossattn, control, transformer_options
        return options[KEY].predict(executor, {"args": inputs, "kwargs": kwargs}, options)


def _tensors(noise: torch.Tensor) -> list[torch.Tensor]:
    """Latents of several kinds come as one."""
    return list(noise.unbind()) if is_nested(noise) else [noise]


def _load_again(guider, x: torch.Tensor) -> None:
    """Load what the run needs: decoding and scoring between two steps may have moved it off the card."""
    rows = [2 * x.shape[0], *x.shape[1:]]  # conditional and unconditional, as ComfyUI counts before a run
    comfy.model_management.load_models_gpu(
        [guider.model_patcher, *guider.loaded_models], memory_required=guider.model_patcher.memory_required(rows)
    )
