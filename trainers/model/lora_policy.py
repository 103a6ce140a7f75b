"""The policy of a run: a base model with a fresh LoRA, its guided prediction, and the base with the LoRA off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...blend_core.errors import BlendError
from ..seeding import ImageNoise
from ..settings.config import Config
from .base import Base
from .guidance import Guidance
from .rollout import Predict

FEATURE_SIDE = 8  # latents are averaged down to this many pixels a side for the value network


@dataclass(frozen=True)
class Encoded:
    """Prompts of a chunk for guided calls. text: (n, width), of their tokens the mean."""

    guidance: Guidance
    text: Tensor


class LoraPolicy:
    """A Policy (policy.py) whose reference is the same network with its LoRA off: no second copy is held."""

    def __init__(self, base: Base, config: Config):
        self.base, self.cfg = base, config.sampling.cfg
        self.steps = base.steps(config)
        self.unwrapped = add_lora(base, config)
        self.network: nn.Module = self.unwrapped  # the accelerator's wrapper, once there is one
        self._recompute = config.optimisation.gradient_checkpointing
        if self._recompute:
            self.unwrapped.enable_gradient_checkpointing()

    @property
    def image_size(self) -> int:
        """Pixels of each side."""
        return self.base.size

    def parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's weights by name, float32."""
        return {name: p for name, p in self.unwrapped.named_parameters() if "lora_" in name}

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """What the network is told for these prompts."""
        guidance = self.base.guidance(prompts, self.cfg)
        return Encoded(guidance, guidance.conditions["text"][-len(prompts) :].float().mean(1))

    def predictor(self, encoded: Encoded) -> Predict:
        """The guided prediction uncond + cfg (cond - uncond), both branches in one pass."""

        guidance = encoded.guidance

        def predict(x: Tensor, k: int) -> Tensor:
            rows, timestep = guidance.rows(x), self.steps[k].timestep
            return guidance.guided(self.base.call(self.network, rows, timestep, guidance.conditions))

        return predict

    def reference_predictor(self, encoded: Encoded) -> Predict:
        """The base model's guided prediction, without gradient."""
        predict = self.predictor(encoded)

        def predict_base(x: Tensor, k: int) -> Tensor:
            with self.reference():
                return predict(x, k)

        return predict_base

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model: the LoRA switched off, and on again whatever happens."""
        self.unwrapped.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            self.unwrapped.enable_adapters()

    def recomputing(self, predict: Predict) -> Predict:
        """The same prediction; under gradient checkpointing nothing of it is kept but its input."""
        if not self._recompute:
            return predict
        return lambda x, k: checkpoint(predict, x, k, use_reentrant=False)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [0, 1]."""
        return self.base.decode(latents)

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of images (n, 3, h, w) in [0, 1]."""
        return self.base.encode_images(images)

    def noise(self, generators: Sequence[torch.Generator]) -> ImageNoise:
        """Noise of the latents' shape, one generator per image."""
        return ImageNoise(generators, self.base.latent_shape, torch.empty(0, device=self.base.device))

    def features(self, x: Tensor, k: int, encoded: Encoded) -> Tensor:
        """What the value network reads of a state, (n, width)."""
        small = F.adaptive_avg_pool2d(x, min(FEATURE_SIDE, x.shape[-1])).flatten(1)
        angle = torch.arange(1, 5, device=x.device) * torch.pi * k / len(self.steps)
        clock = torch.cat([angle.sin(), angle.cos()]).expand(len(x), -1)
        return torch.cat([small, encoded.text.to(x), clock], dim=1)


def add_lora(base: Base, config: Config) -> nn.Module:
    """The base's network with a fresh LoRA of scale 1 that changes nothing yet; its weights are float32."""
    targets = config.lora.targets or base.family.targets
    rank = config.lora.rank
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            base.network.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
            )
        except ValueError as error:
            raise BlendError(
                f"lora.targets is {', '.join(targets)}, of which nothing is in {type(base.network).__name__}. Name "
                "layers of that network, or leave it empty."
            ) from error
    cast_training_params(base.network, dtype=torch.float32)
    return base.network
