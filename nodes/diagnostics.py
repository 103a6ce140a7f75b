"""Saying whether a blend can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..blend_core import BlendError, exact, image_seed
from ..blend_core.diagnostics import Diagnosis, Disagreement, Gap, disagreement, gap_at, posterior_samples, probed_steps
from ..blend_core.pictures.diagnosis import draw
from .host.apply import EXECUTIONS, sample
from .host.msdda import is_flow
from .host.reward_models import RewardModel, decoded
from .output import CACHED_TOO, as_image, shown
from .samplers import BLEND_TOOLTIP, EXECUTION_TOOLTIP, ksampler_inputs
from .types import CATEGORY, Basis, LoRABlend, RewardModelSocket, blend_input, blend_of


class Diagnostics(io.ComfyNode):
    """Blended KSampler, recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendDiagnostics",
            display_name="Blend Diagnostics",
            category=CATEGORY,
            description="Samples a blend and says whether to trust it: how far its reward LoRAs disagree at every step "
            "and, with a reward model, how large the error is that blending neglects.",
            search_aliases=["diagnose", "trust", "disagreement", "jensen gap", "diffusion blend"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on."),
                blend_input("blend", BLEND_TOOLTIP),
                *ksampler_inputs(),
                io.Combo.Input("execution", options=list(EXECUTIONS), tooltip=EXECUTION_TOOLTIP),
                RewardModelSocket.Input(
                    "reward_model",
                    optional=True,
                    tooltip="The reward that one of the reward LoRAs was trained on. It scores samples of the base "
                    "model, which takes samples x probes further runs. Not connected: disagreement alone.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the samples that the reward model scores."),
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
        **ksampler,
    ) -> io.NodeOutput:
        """Sample and record, probe where a reward is connected, then draw."""
        blend = blend_of(blend)
        if blend.regions:
            raise BlendError(
                "a blend with regions came; diagnostics are of one blend for the whole image. Connect the blend of a "
                "region alone."
            )
        probe = None if reward_model is None else Probe.of(blend, reward_of, reward_model, vae, prompt, latent_image)
        recorder = Recorder()
        latent, applied = sample(model, blend, exact, execution, latent_image, record=recorder, **ksampler)
        if not recorder.steps:
            raise BlendError("no step was sampled, because denoise is 0. Set it above 0, 1 for an image from noise.")
        count = len(recorder.steps)
        places = [] if probe is None else probed_steps(count, probes)
        gaps = [] if probe is None else probe.gaps(model, recorder, places, samples, ksampler)
        plain = applied.calls * blend.evaluated(count)
        spent = plain + count * (1 + len(blend.bases)) + samples * sum(count - k for k in places)
        formula = blend.schedule.formula()
        diagnosis = Diagnosis(blend.names, formula, tuple(recorder.steps), tuple(gaps), spent, plain)
        picture = as_image(draw(diagnosis))
        text = f"{diagnosis.describe()}\n\n{applied.report}"
        return shown(str(diagnosis.verdict), picture, text, diagnosis.to_json(), latent)


class Recorder:
    """What a recorded run leaves: how the bases disagree at every step, and the states there."""

    def __init__(self):
        self.steps: list[Disagreement] = []
        self.states: list[Tensor] = []

    def __call__(
        self, step: int, sigma: float, x: Tensor, denoised: list[Tensor], coefficients: Sequence[float]
    ) -> None:
        """Keep one step. x (batch, ...); denoised: (1 + m) of its shape, base first."""
        self.steps.append(disagreement(x, torch.stack(denoised), coefficients, step, sigma))
        self.states.append(x.cpu())


@dataclass(frozen=True)
class Probe:
    """A reward, and the reward LoRA of the blend that was trained on it."""

    name: str
    kl_weight: float
    factor: float
    reward: RewardModel
    vae: object
    prompt: str

    @classmethod
    def of(cls, blend: LoRABlend, name: str, reward: RewardModel, vae, prompt: str, latent: dict) -> Probe:
        """Raises BlendError for what keeps the probe from running, before anything is sampled."""
        name = name.strip() or blend.names[0]
        if name not in blend.names:
            raise BlendError(
                f"reward_of is {name!r}, but the blend has {', '.join(blend.names)}. Type one of these labels."
            )
        lora = blend.bases[blend.names.index(name)]
        if lora.kl_weight is None:
            raise BlendError(
                f"{name} does not state the KL weight it was trained with, which the probe needs. Type it where "
                "the basis is loaded, or disconnect the reward model."
            )
        if vae is None:
            raise BlendError("a reward model is connected, but no VAE, which decodes what it scores. Connect one.")
        if latent.get("noise_mask") is not None:
            raise BlendError(
                "the latent has a mask, and samples of the base model are drawn for the whole image. Remove Set Latent "
                "Noise Mask, or disconnect the reward model."
            )
        return cls(name, lora.kl_weight, lora.reward_factor, reward, vae, prompt)

    def gaps(self, model, recorder: Recorder, places: list[int], samples: int, ksampler: dict) -> list[Gap]:
        """The Jensen gap before each of the steps `places`, from the base model's posterior there."""
        sigmas = [step.sigma for step in recorder.steps] + [0.0]
        progress = comfy.utils.ProgressBar(samples * len(places))
        found = []
        for k in places:
            scores = []
            for i in range(samples):
                generator = torch.Generator().manual_seed(image_seed(ksampler["seed"], 1000 * k + i))
                options = {"state": recorder.states[k], "generator": generator}
                scores.append(self._scores(drawn(model, torch.tensor(sigmas[k:]), options, ksampler)))
                progress.update(1)
            step = recorder.steps[k]
            found.append(
                gap_at(step.step, step.sigma, self.name, torch.stack(scores), self.kl_weight, step.coefficients)
            )
        return found

    def _scores(self, latents: Tensor) -> Tensor:
        return self.factor * torch.cat(list(self.reward.scores(decoded(self.vae, latents), [self.prompt])))


def drawn(model, sigmas: Tensor, options: dict, ksampler: dict) -> Tensor:
    """Clean latents from the plain model's posterior. options: of sample_posterior."""
    nothing = torch.zeros_like(options["state"])
    sampler = comfy.samplers.KSAMPLER(sample_posterior, options)
    return comfy.sample.sample_custom(
        model, nothing, ksampler["cfg"], sampler, sigmas, ksampler["positive"], ksampler["negative"], nothing,
        disable_pbar=True, seed=ksampler["seed"],
    )  # fmt: skip


@torch.no_grad()
def sample_posterior(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict,
    callback=None,
    disable: bool | None = None,
    state: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A sampler function that starts from `state`, shaped as x, whatever x is: x0 ~ p(. | state) of the model."""
    ones = x.new_ones([x.shape[0]])
    return posterior_samples(
        lambda x, k: model(x, sigmas[k] * ones, **extra_args),
        state.to(x),
        sigmas.tolist(),
        0,
        "flow" if is_flow(model) else "ve",
        lambda: torch.randn(x.shape, generator=generator).to(x),
    )
