"""KSampler whose preference moves to the reward that an image falls short in (blend_core/maximin)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ..blend_core import Blend, BlendError, Plan
from ..blend_core.blend import parse_numbers
from ..blend_core.estimators import exact
from ..blend_core.maximin import attained, personal, worse_first
from ..blend_core.plan import kept_steps
from ..blend_core.rewards import check_images
from ..blend_core.schedules import Schedule
from .host.apply import sample
from .host.reward_models import RewardModel, decoded
from .inputs import BLEND_TOOLTIP, CATEGORY, blend_input, execution_input, ksampler_inputs, model_input, rewards_input
from .output import CACHED_TOO, shown
from .types import Basis, LoRABlend, blend_of


@dataclass(frozen=True)
class Panel:
    """What judges a predicted image: a VAE, a reward per basis, the prompt, and how much of each reward is enough."""

    vae: object
    models: Sequence[RewardModel]
    prompt: str
    targets: Sequence[float]
    scales: Sequence[float]

    def attained(self, latents: Tensor) -> Tensor:
        """(batch, m) of z_i = (r_i - target_i) / scale_i of the decoded latents."""
        pixels = decoded(self.vae, latents)
        check_images(pixels)
        scores = [torch.cat(list(model.scores(pixels, [self.prompt]))) for model in self.models]
        return attained(torch.stack(scores, dim=1), self.targets, self.scales)


class WorstFirst:
    """The steering of one run: every image's own preference, moved every few steps.

    steps: of the run.  until: the share of them that the blend acts in.
    moves: (step, preference (batch, m), attained (batch, m) before it) of each change.
    """

    def __init__(self, blend: Blend, panel: Panel, rate: float, every: int, steps: int, until: float = 1.0):
        self.blend, self.panel, self.rate, self.every, self.steps = blend, panel, rate, every, steps
        self.until = until
        self.preference: Tensor | None = None
        self.moves: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, step: int, denoised: Tensor) -> Plan | None:
        """Move the weights after each `every`-th step; see host.run.Steering."""
        if step % self.every or step >= kept_steps(self.until, self.steps):
            return None
        z = self.panel.attained(denoised)
        if self.preference is None:
            self.preference = torch.tensor(self.blend.preference, dtype=torch.float64).expand_as(z)
        self.preference = worse_first(self.preference, z, self.rate)
        self.moves.append((step, self.preference, z))
        blends = [replace(self.blend, preference=tuple(of_image)) for of_image in self.preference.tolist()]
        coefficients = torch.tensor([blend.coefficients for blend in blends], dtype=torch.float64)
        return personal(coefficients, self.steps, self.until)

    def describe(self) -> str:
        """How the weights moved, image by image."""
        if not self.moves:
            return "no weight was moved: there were too few steps"
        start = _listed(self.blend.names, self.blend.preference)
        lines = []
        for image in range(len(self.moves[0][1])):
            lines += [f"image {image + 1}", f"start: {start}"]
            lines += [self._line(step, preference[image], z[image]) for step, preference, z in self.moves]
        return "\n".join(lines)

    def _line(self, step: int, preference: Tensor, z: Tensor) -> str:
        names = self.blend.names
        return f"step {step}: {_listed(names, preference.tolist())}   (attained {_listed(names, z.tolist())})"


def _listed(names: Sequence[str], numbers: Sequence[float]) -> str:
    return ", ".join(f"{name} {number:.3g}" for name, number in zip(names, numbers, strict=True))


class MaximinKSampler(io.ComfyNode):
    """KSampler under a blend whose weights follow the worst reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendMaximinKSampler",
            display_name="Maximin KSampler",
            category=CATEGORY,
            description="KSampler with a blend whose weights move, while an image is made, to the reward it falls "
            "short in most.",
            search_aliases=["maximin", "chebyshev", "worst reward", "adaptive weights", "diffusion blend"],
            **CACHED_TOO,
            is_experimental=True,
            inputs=[
                model_input(),
                blend_input(
                    "blend", f"{BLEND_TOOLTIP} Its weights are where the run starts; a weight of 0 stays 0."
                ),
                *ksampler_inputs(),
                io.Vae.Input("vae", tooltip="Decodes the predicted image for the rewards."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What the image is to show, for rewards that read it; the others ignore it.",
                ),
                rewards_input("What the LoRA in this place of Blend Weights was trained for; one per reward LoRA."),
                io.String.Input(
                    "targets",
                    default="",
                    tooltip="The score that counts as 0, one number per reward; a reward below its target by more of "
                    "its scale is worse off. Empty: the lower ends of the rewards' usual ranges.",
                ),
                io.String.Input(
                    "scales",
                    default="",
                    tooltip="How many points of a score count as 1, one number above 0 per reward. Empty: the widths "
                    "of the rewards' usual ranges.",
                ),
                io.Float.Input(
                    "rate",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How fast weights move: with 2, a lead of half a scale makes the other reward e times as "
                    "heavy at each change. 0: they stay.",
                ),
                io.Int.Input(
                    "every",
                    default=3,
                    min=1,
                    max=1000,
                    tooltip="Steps between two changes. Each one decodes and scores the predicted image. 1: after "
                    "every step.",
                ),
                execution_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                io.String.Output(display_name="weights", tooltip="How the weights of each image moved."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        blend: LoRABlend | Basis,
        vae,
        prompt: str,
        rewards: dict[str, RewardModel | None],
        targets: str,
        scales: str,
        rate: float,
        every: int,
        execution: str,
        latent_image: dict,
        **ksampler,
    ) -> io.NodeOutput:
        """Sample, and tell how the weights moved."""
        blend = blend_of(blend)
        schedule = _plain(blend)
        start = schedule.blends[0]
        panel = _panel(vae, [model for model in rewards.values() if model is not None], prompt, targets, scales, start)
        result = sample(
            model,
            blend,
            exact,
            execution,
            latent_image,
            steered=partial(WorstFirst, start, panel, rate, every, until=schedule.until),
            **ksampler,
        )
        text = "no step was sampled" if result.steering is None else result.steering.describe()
        return shown(f"{result.report}\n{text}", result.latent, text)


def _plain(blend: LoRABlend) -> Schedule:
    """The schedule of one blend. Raises BlendError for regions and schedules, whose weights are set already."""
    schedule = blend.schedule
    only, *others = schedule.blends
    if blend.regions or others or not isinstance(schedule, Schedule):
        raise BlendError(
            "a schedule, window or region came, which set the weights that Maximin KSampler is to move. Connect Blend "
            "Weights or KL Interpolate, or use Blended KSampler."
        )
    if min(only.coefficients[1:]) < 0:
        raise BlendError(
            f"the blend is {only.formula()}, expected no reward below 0: Maximin KSampler moves weights towards "
            "rewards. Give every reward a weight of 0 or more, or use Blended KSampler."
        )
    return schedule


def _panel(vae, models: Sequence[RewardModel], prompt: str, targets: str, scales: str, blend: Blend) -> Panel:
    """Raises BlendError for another count of rewards than of bases, and for numbers that cannot be."""
    names = ", ".join(blend.names)
    if len(models) != len(blend.names):
        raise BlendError(
            f"{len(models)} reward models came for {len(blend.names)} reward LoRAs ({names}). Connect one per LoRA, in "
            "the order of Blend Weights."
        )
    for model in models:
        model.reward.one_per_image([prompt], 1)  # refuses an empty prompt before anything runs
    lows = _numbers(targets, "targets", models, lambda low, high: low)
    widths = _numbers(scales, "scales", models, lambda low, high: high - low)
    if not all(width > 0 for width in widths):
        raise BlendError(f"the scales are {', '.join(f'{w:g}' for w in widths)}, expected numbers above 0. Raise them.")
    return Panel(vae, models, prompt, lows, widths)


def _numbers(text: str, name: str, models: Sequence[RewardModel], usual) -> tuple[float, ...]:
    """The numbers typed, or usual(low, high) of the rewards' usual ranges."""
    numbers = parse_numbers(text, name, "reward", "20, 0.5")
    if numbers and len(numbers) != len(models):
        raise BlendError(f"{len(numbers)} {name} came for {len(models)} rewards. Give one each, or leave them empty.")
    if numbers:
        return numbers
    ranges = [model.reward.card.usual_range for model in models]
    unknown = [model.name for model, bounds in zip(models, ranges, strict=True) if bounds is None]
    if unknown:
        raise BlendError(f"the usual range of {', '.join(unknown)} is not stated, so type the {name}: one per reward.")
    return tuple(usual(*bounds) for bounds in ranges if bounds is not None)
