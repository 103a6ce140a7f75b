"""What a policy is to objectives, rollouts and validation: a chain, and predictions for its steps.

LoraPolicy (lora_policy.py) is a model with a LoRA; the tests have a Gaussian chain whose optimum is known.
n: images of a chunk.  k: number of a step in the chain, from 0.  latent: one image's latents, such as (4, 64, 64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .chain import Step
from .rollout import Predict

Encoding = Any
"""Prompts as one policy encodes them. Only that policy reads them; objectives hand them from call to call."""


@runtime_checkable
class Policy(Protocol):
    """A chain that is trained, and the base chain that its KL is measured from."""

    steps: Sequence[Step]
    """The chain, from noise to the clean latent."""

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """What `predictor`, `reference_predictor` and `features` take for n prompts; without gradient."""
        ...

    def predictor(self, encoded: Encoding) -> Predict:
        """predict(x, k): the prediction (n, *latent) at x (n, *latent) for step k, with gradient to the weights."""
        ...

    def reference_predictor(self, encoded: Encoding) -> Predict:
        """The same of the base, without gradient."""
        ...

    def recomputing(self, predict: Predict) -> Predict:
        """The same prediction; where memory is to be saved, its activations are computed again going backward."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """What rewards score, images (n, 3, h, w) in [0, 1], of clean latents (n, *latent); differentiable."""
        ...

    def noise(self, generators: Sequence[torch.Generator]) -> Callable[[], Tensor]:
        """A function whose every call draws standard normal noise (n, *latent). generators: one per image."""
        ...

    def features(self, x: Tensor, k: int, encoded: Encoding) -> Tensor:
        """What a value network reads of the state x (n, *latent) before step k, (n, width)."""
        ...


@runtime_checkable
class TaughtPolicy(Policy, Protocol):
    """A policy that is to predict what a teacher predicts."""

    def teacher_predictor(self, encoded: Encoding) -> Predict:
        """The same of the teacher, without gradient."""
        ...


@runtime_checkable
class ImagePolicy(Policy, Protocol):
    """A policy that reads images too, which preference pairs need."""

    @property
    def image_size(self) -> int:
        """Pixels of each side."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Clean latents (n, *latent) of images (n, 3, image_size, image_size) in [0, 1]."""
        ...
