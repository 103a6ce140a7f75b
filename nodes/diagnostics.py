"""Saying whether a blend can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import io
from torch import Tensor

from ..blend_core import BlendError
from ..blend_core.diagnostics import Diagnosis, Disagreement, disagreement, probed_steps
from ..blend_core.estimators import exact
from ..blend_core.pictures.diagnosis import draw
from .host.apply import sample
from .host.both_ways import BothWays
from .host.posterior import Probe
from .host.reward_models import RewardModel
from .inputs import BLEND_TOOLTIP, CATEGORY, blend_input, execution_input, ksampler_inputs, model_input, rewards_input
from .output import CACHED_TOO, as_image, shown
from .types import Basis, LoRABlend, RewardModelSocket, blend_of


class Diagnostics(io.ComfyNode):
    """Blended KSampler, recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendDiagnostics",
            display_name="Blend Diagnostics",
            category=CATEGORY,
            description="Samples a blend and says whether to trust it, and whether merged evaluation would do: how far "
            "its reward LoRAs disagree at every step, how far merged is from exact, which of them rewards prefer, and "
            "how large the error is that blending neglects.",
            search_aliases=["diagnose", "trust", "disagreement", "jensen gap", "diffusion blend"],
            **CACHED_TOO,
            inputs=[
                model_input(),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(),
                execution_input(),
                RewardModelSocket.Input(
                    "reward_model",
                    optional=True,
                    tooltip="The reward that one of the reward LoRAs was trained on. It scores samples of the base "
                    "model, which takes samples x probes further runs. Not connected: disagreement alone.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes what rewards score."),
                io.String.Input(
                    "reward_of",
                    default="",
                    optional=True,
                    tooltip="The label of the reward LoRA that was trained on this reward. Empty: the first one. It "
                    "has to state its KL weight, or have it typed in Load Reward LoRA.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    optional=True,
                    tooltip="The text of positive, for reward models that read it; others ignore it.",
                ),
                io.Int.Input(
                    "samples",
                    default=16,
                    min=3,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="Runs of the base model per probed step and image: 16 for a first look, 64 for figures.",
                ),
                io.Int.Input(
                    "probes",
                    default=3,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="How many steps are probed, at equal distances. 1: the first, where the gap is largest.",
                ),
                io.String.Input(
                    "reward_weights",
                    default="",
                    optional=True,
                    tooltip="One number per reward in rewards, in the order of the slots. Empty: equal shares. Rewards "
                    "have different scales: see their usual ranges.",
                ),
                io.Int.Input(
                    "images",
                    default=16,
                    min=1,
                    max=1024,
                    optional=True,
                    tooltip="Seeds from which rewards compare merged with exact, a picture of each way from each. 16 "
                    "for a first look, 64 for small differences. At least 8 pictures of each way.",
                ),
                rewards_input(
                    "What decides between merged and exact evaluation: pictures of both are made from the same noise "
                    "and scored. Not connected: the distance between both alone.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Curves over the steps, and the verdict."),
                io.String.Output(display_name="text", tooltip="The verdict and all numbers."),
                io.String.Output(display_name="json", tooltip="The same for programs."),
                io.Latent.Output(display_name="latent", tooltip="The same as Blended KSampler's."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        blend: LoRABlend | Basis,
        execution: str,
        latent_image: dict,
        reward_model: RewardModel | None = None,
        vae=None,
        reward_of: str = "",
        prompt: str = "",
        samples: int = 16,
        probes: int = 3,
        reward_weights: str = "",
        images: int = 16,
        rewards: dict[str, RewardModel | None] | None = None,
        **ksampler,
    ) -> io.NodeOutput:
        """Sample and record, probe and compare where rewards are connected, then draw."""
        blend = blend_of(blend)
        if blend.regions:
            raise BlendError(
                "a blend with regions came; diagnostics are of one blend for the whole image. Connect the blend of a "
                "region alone."
            )
        probe = None if reward_model is None else Probe.of(blend, reward_of, reward_model, vae, prompt, latent_image)
        judges = [judge for judge in (rewards or {}).values() if judge is not None]
        batch = latent_image["samples"].shape[0]
        compared = BothWays.of(blend, judges, reward_weights, vae, prompt, images, batch) if judges else None
        recorder = Recorder()
        result = sample(model, blend, exact, execution, latent_image, record=recorder, **ksampler)
        if not recorder.steps:
            raise BlendError("no step was sampled, because denoise is 0. Set it above 0, 1 for an image from noise.")
        count = len(recorder.steps)
        places = [] if probe is None else probed_steps(count, probes)
        gaps = [] if probe is None else probe.gaps(model, recorder.steps, recorder.states, places, samples, ksampler)
        plain = round(result.calls / count * blend.evaluated(count))
        looked_at = count * (1 + len(blend.bases)) + sum(step.merged is not None for step in recorder.steps)
        spent = plain + looked_at + samples * sum(count - k for k in places)
        scores, more = compared.scored(model, blend, execution, latent_image, ksampler) if compared else ((), 0)
        formula = blend.schedule.formula()
        diagnosis = Diagnosis(blend.names, formula, tuple(recorder.steps), tuple(gaps), spent + more, plain, scores)
        picture = as_image(draw(diagnosis))
        text = f"{diagnosis.describe()}\n\n{result.report}"
        words = "\n".join(filter(None, (str(diagnosis.verdict), diagnosis.way)))
        return shown(words, picture, text, diagnosis.to_json(), result.latent)


class Recorder:
    """What a recorded run leaves: how the bases disagree at every step, and the states there."""

    def __init__(self):
        self.steps: list[Disagreement] = []
        self.states: list[Tensor] = []

    def __call__(
        self,
        step: int,
        sigma: float,
        x: Tensor,
        denoised: list[Tensor],
        coefficients: Sequence[float],
        together: Tensor | None,
    ) -> None:
        """Keep one step. x (batch, ...); denoised: (1 + m) of its shape, base first; together: see host.run.Record."""
        self.steps.append(disagreement(x, torch.stack(denoised), coefficients, step, sigma, together))
        self.states.append(x.cpu())
