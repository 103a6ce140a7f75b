"""Sampling with a blend: on any sampler (Apply Blend), or as a KSampler."""

from __future__ import annotations

from functools import partial

import comfy.samplers
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom

from ..blend_core import Job, budget, choices, describe_choices, exact, merged, sampled, stratified
from ..blend_core.estimators import BUDGET, Estimator
from .host.apply import EXECUTIONS, apply_blend, sample
from .host.msdda import describe_etas, sample_msdda
from .output import CACHED_TOO, shown
from .types import CATEGORY, Basis, LoRABlend, blend_input, blend_of

_NOTHING_SAMPLED = "no step was sampled"
SELECTIONS = {"stratified": stratified, "random": sampled, "budget": budget, "merged": merged}
EVALUATIONS = {"exact": exact, **SELECTIONS}

BLEND_TOOLTIP = "What to blend, from Blend Weights or KL Interpolate."
_ONE_PER_STEP_TOOLTIP = (
    "stratified spreads each reward evenly over the steps and lies nearer to the exact blend than random, which draws "
    "each step's reward independently, as in the paper. budget also remembers what the other rewards last predicted: "
    "nearest with deterministic samplers, and alignment above 1 works too. merged adds all LoRAs at their coefficients "
    "in one prediction, as stacked LoRAs do: the cheapest, at any alignment."
)
_BUDGET_TOOLTIP = (
    "For budget: evaluations per step on average, from 1 (the plain sampler's cost, but for a first step of all "
    "rewards) to the number of rewards (exact). What is above 1 goes where predictions change most. Others ignore it."
)
EXECUTION_TOOLTIP = (
    "How the rewards of a step are computed: batched is one larger pass, sequential one after another with no extra "
    "memory. auto takes the largest batch that fits. The image is the same up to rounding."
)


def ksampler_inputs(choose_sampler: bool = True) -> list[io.Input]:
    """KSampler's own inputs, in its order and with its ranges."""
    inputs = [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The random seed of the noise. The same seed gives the same image.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps; 20 to 30 suit most models."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance; 1 switches it off. Reward LoRAs work best near the value they were "
            "trained with, 5 to 8 for SD 1.5.",
        ),
        io.Combo.Input(
            "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="Any sampler of ComfyUI works."
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How noise is removed over the steps."
        ),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; an empty one for text to image."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="1 starts from pure noise; lower values keep the structure of latent_image.",
        ),
    ]
    return [entry for entry in inputs if choose_sampler or entry.id != "sampler_name"]


def _budget_input() -> io.Input:
    """How much the evaluation `budget` may spend."""
    return io.Float.Input(
        "budget", default=BUDGET, min=1.0, max=16.0, step=0.05, round=0.01, advanced=True, tooltip=_BUDGET_TOOLTIP
    )


def _estimator(evaluation: str, evaluations: float) -> Estimator:
    """The estimator that a node's choice means."""
    return partial(budget, evaluations=evaluations) if evaluation == "budget" else EVALUATIONS[evaluation]


def _eta_inputs() -> list[io.Input]:
    """How ancestral each basis's step is."""
    return [
        io.String.Input(
            "etas",
            default="",
            tooltip="How ancestral each reward LoRA was trained, in the order of Blend Weights: above 0, up to 1 "
            "(fully ancestral). A lower one makes that basis more certain, so that it counts more. Empty: as the files "
            "say, 1 where they do not. All alike: the same as a blended ancestral sampler.",
        ),
        io.Float.Input(
            "base_eta",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="The same for the base model, where it has a coefficient. 1 is ancestral.",
        ),
    ]


class ApplyBlend(io.ComfyNode):
    """A MODEL that predicts the blend, for any sampler, guider, upscaler or ControlNet graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendApply",
            display_name="Apply Blend",
            category=CATEGORY,
            description="Gives a MODEL whose predictions are the blend, for any sampler. The model that goes in "
            "stays as it is.",
            search_aliases=["apply blend", "diffusion blend", "reward blend", "DB-MPA", "DB-MPA-LS"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on."),
                blend_input("blend", BLEND_TOOLTIP),
                io.Combo.Input(
                    "evaluation",
                    options=list(EVALUATIONS),
                    tooltip="exact: every reward at every step (cost: their number). The others evaluate one per step: "
                    + _ONE_PER_STEP_TOOLTIP,
                ),
                io.Combo.Input("execution", options=list(EXECUTIONS), tooltip=EXECUTION_TOOLTIP),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Decides which reward each step uses; exact ignores it. It does not touch the noise.",
                ),
                _budget_input(),
                io.Int.Input(
                    "job_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    advanced=True,
                    tooltip="Where several samplers share the steps of one image (Wan 2.2, a refiner): how many they "
                    "make together, the `steps` of KSampler (Advanced). Schedules and choices then run over all of "
                    "them. 0: each sampler counts its own.",
                ),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    advanced=True,
                    tooltip="With job_steps: the step at which this model's sampler starts, as in KSampler (Advanced). "
                    "0: the first.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Connect to any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        blend: LoRABlend | Basis,
        evaluation: str,
        execution: str,
        seed: int,
        budget: float = BUDGET,
        job_steps: int = 0,
        start_at_step: int = 0,
    ) -> io.NodeOutput:
        """Patch a clone of the model and show how the LoRAs matched it."""
        blend = blend_of(blend)
        job = Job(job_steps, start_at_step)
        applied = apply_blend(model, blend, _estimator(evaluation, budget), execution, seed, job=job)
        return shown(applied.report, applied.model)


class BlendedKSampler(io.ComfyNode):
    """KSampler under a blend, evaluated exactly (DB-MPA and DB-KLA)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendKSampler",
            display_name="Blended KSampler",
            category=CATEGORY,
            description="KSampler with a blend: every reward is evaluated at every step.",
            search_aliases=["blended ksampler", "diffusion blend", "DB-MPA", "DB-KLA", "reward sampler"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on."),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(),
                io.Combo.Input("execution", options=list(EXECUTIONS), tooltip=EXECUTION_TOOLTIP),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, blend: LoRABlend | Basis, execution: str, latent_image: dict, **ksampler) -> io.NodeOutput:
        """Sample."""
        blend = blend_of(blend)
        latent, applied = sample(model, blend, exact, execution, latent_image, **ksampler)
        return shown(applied.report, latent)


class StochasticLSSampler(io.ComfyNode):
    """KSampler under a blend at the plain sampler's cost: one reward per step (DB-MPA-LS)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendStochasticLS",
            display_name="Stochastic LS Sampler",
            category=CATEGORY,
            description="KSampler with a blend at the cost of the plain sampler: each step uses one reward LoRA, "
            "or the base model where alignment is below 1.",
            search_aliases=["stochastic ls", "lora sampling", "DB-MPA-LS", "diffusion blend", "fast blend"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on."),
                blend_input("blend", f"{BLEND_TOOLTIP} Alignment above 1 needs the selection budget or "
                    "merged."),
                *ksampler_inputs(),
                io.Combo.Input(
                    "selection",
                    options=list(SELECTIONS),
                    default="budget",
                    tooltip=_ONE_PER_STEP_TOOLTIP,
                ),
                _budget_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                io.String.Output(display_name="choices", tooltip="Which reward each step of each image used."),
            ],
        )

    @classmethod
    def execute(
        cls, model, blend: LoRABlend | Basis, selection: str, latent_image: dict, budget: float = BUDGET, **ksampler
    ) -> io.NodeOutput:
        """Sample, and list the choices."""
        blend = blend_of(blend)
        estimator = _estimator(selection, budget)
        latent, applied = sample(model, blend, estimator, "sequential", latent_image, **ksampler)
        plan = applied.plan  # None where ComfyUI had nothing to sample: denoise 0
        if plan is None:
            return shown(f"{applied.report}\n{_NOTHING_SAMPLED}", latent, _NOTHING_SAMPLED)
        text = describe_choices(plan, blend.names)
        strips = {"names": ["base", *blend.names, "merged"], "images": choices(plan, blend.names)}
        return shown(f"{applied.report}\n{text}", latent, text, editor={"choices": strips})


class MSDDASampler(io.ComfyNode):
    """The fused step of MSDDA as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendMSDDASampler",
            display_name="MSDDA Sampler",
            category=CATEGORY,
            description="A sampler for SamplerCustom and SamplerCustomAdvanced: each reward takes its own step, and "
            "the steps are fused exactly. The model has to come from Apply Blend.",
            search_aliases=["msdda", "gaussian fusion", "diffusion blend sampler"],
            inputs=_eta_inputs(),
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="Connect to SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, etas: str, base_eta: float = 1.0) -> io.NodeOutput:
        """Make the sampler."""
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_msdda, {"etas": etas, "base_eta": base_eta}))


class MSDDAKSampler(io.ComfyNode):
    """KSampler under MSDDA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendMSDDAKSampler",
            display_name="MSDDA KSampler",
            category=CATEGORY,
            description="KSampler with a blend whose rewards were trained with unlike eta: their reverse steps are "
            "fused exactly, the more certain one counting more.",
            search_aliases=["msdda", "gaussian fusion", "diffusion blend"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on."),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(choose_sampler=False),
                *_eta_inputs(),
                io.Combo.Input("execution", options=list(EXECUTIONS), tooltip=EXECUTION_TOOLTIP),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        blend: LoRABlend | Basis,
        seed: int,
        steps: int,
        cfg: float,
        scheduler: str,
        positive,
        negative,
        latent_image: dict,
        denoise: float,
        etas: str,
        execution: str,
        base_eta: float = 1.0,
    ) -> io.NodeOutput:
        """Sample, through ComfyUI's own SamplerCustom."""
        blend = blend_of(blend)
        applied = apply_blend(model, blend, exact, execution, seed, latent_image.get("batch_index"))
        sampler = comfy.samplers.KSAMPLER(sample_msdda, {"etas": etas, "base_eta": base_eta})
        sigmas = BasicScheduler.execute(applied.model, scheduler, steps, denoise).result[0]
        result = SamplerCustom.execute(
            applied.model, True, seed, cfg, positive, negative, sampler, sigmas, latent_image
        ).result[0]
        return shown(f"{applied.report}\n{describe_etas(blend.bases, etas)}", result)
