"""Probing how a reward bends the base model's posterior, by samples of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...blend_core import BlendError
from ...blend_core.diagnostics import Disagreement, Gap, gap_at, posterior_samples
from ...blend_core.estimators import image_seed
from ..types import LoRABlend
from .interface import progress_of
from .msdda import is_flow
from .reward_models import RewardModel, decoded


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

    def gaps(
        self,
        model,
        steps: Sequence[Disagreement],
        states: Sequence[Tensor],
        places: Sequence[int],
        samples: int,
        ksampler: dict,
    ) -> list[Gap]:
        """The Jensen gap before each of the steps `places`, from the base model's posterior there.

        steps, states: of the recorded run, one per step.
        """
        sigmas = [step.sigma for step in steps] + [0.0]
        progress = progress_of(samples * len(places))
        gaps = []
        for k in places:
            scores = []
            for i in range(samples):
                generator = torch.Generator().manual_seed(image_seed(ksampler["seed"], 1000 * k + i))
                options = {"state": states[k], "generator": generator}
                scores.append(self._scores(draw_clean(model, torch.tensor(sigmas[k:]), options, ksampler)))
                progress(1)
            step = steps[k]
            gaps.append(
                gap_at(step.step, step.sigma, self.name, torch.stack(scores), self.kl_weight, step.coefficients)
            )
        return gaps

    def _scores(self, latents: Tensor) -> Tensor:
        return self.factor * torch.cat(list(self.reward.scores(decoded(self.vae, latents), [self.prompt])))


def draw_clean(model, sigmas: Tensor, options: dict, ksampler: dict) -> Tensor:
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
    *,
    state: Tensor,
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
