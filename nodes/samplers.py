"""Sampling with a blend: on any sampler (Apply Blend), or as a KSampler."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..blend_core.estimators import BUDGET, Estimator, budget, exact, merged, random, stratified
from ..blend_core.plan import Job, choices, describe_choices
from .host.apply import apply_blend, sample
from .host.msdda import describe_etas, msdda_sampler, sample_fused
from .inputs import BLEND_TOOLTIP, CATEGORY, blend_input, execution_input, ksampler_inputs, model_input, seed_input
from .output import CACHED_TOO, shown
from .types import Basis, LoRABlend, blend_of

_NOTHING_SAMPLED = "no step was sampled"
SELECTIONS = {"stratified": stratified, "random": random, "budget": budget, "merged": merged}
EVALUATIONS = {"exact": exact, **SELECTIONS}

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
            "say, 1 where they do not. All equal: the same as a blended ancestral sampler.",
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
                model_input(),
                blend_input("blend", BLEND_TOOLTIP),
                io.Combo.Input(
                    "evaluation",
                    options=list(EVALUATIONS),
                    tooltip="exact: every reward at every step (cost: their number). The others evaluate one per step: "
                    + _ONE_PER_STEP_TOOLTIP,
                ),
                execution_input(),
                seed_input("Decides which reward each step uses; exact ignores it. It does not touch the noise."),
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
                model_input(),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(),
                execution_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, blend: LoRABlend | Basis, execution: str, latent_image: dict, **ksampler) -> io.NodeOutput:
        """Sample."""
        blend = blend_of(blend)
        result = sample(model, blend, exact, execution, latent_image, **ksampler)
        return shown(result.report, result.latent)


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
                model_input(),
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
        result = sample(model, blend, estimator, "sequential", latent_image, **ksampler)
        if result.plan is None:  # ComfyUI had nothing to sample: denoise 0
            return shown(f"{result.report}\n{_NOTHING_SAMPLED}", result.latent, _NOTHING_SAMPLED)
        text = describe_choices(result.plan, blend.names)
        strips = {"names": ["base", *blend.names, "merged"], "images": choices(result.plan, blend.names)}
        return shown(f"{result.report}\n{text}", result.latent, text, editor={"choices": strips})


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
        return io.NodeOutput(msdda_sampler(etas, base_eta))


class MSDDAKSampler(io.ComfyNode):
    """KSampler under MSDDA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendMSDDAKSampler",
            display_name="MSDDA KSampler",
            category=CATEGORY,
            description="KSampler with a blend whose rewards were trained with different eta: their reverse steps are "
            "fused exactly, the more certain one counting more.",
            search_aliases=["msdda", "gaussian fusion", "diffusion blend"],
            **CACHED_TOO,
            inputs=[
                model_input(),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(choose_sampler=False),
                *_eta_inputs(),
                execution_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        blend: LoRABlend | Basis,
        etas: str,
        execution: str,
        base_eta: float = 1.0,
        **ksampler,
    ) -> io.NodeOutput:
        """Sample."""
        blend = blend_of(blend)
        result = sample_fused(model, blend, execution, etas=etas, base_eta=base_eta, **ksampler)
        return shown(f"{result.report}\n{describe_etas(blend.bases, etas)}", result.latent)
