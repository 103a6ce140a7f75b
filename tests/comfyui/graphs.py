"""The graphs a user builds, node after node, through the `execute` of each node."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nodes import KSampler  # ComfyUI's own

SAMPLING = {"seed": 1, "steps": 3, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def latent(batch: int = 1, shape: tuple[int, ...] = (4, 8, 8), **extra) -> dict:
    """An empty latent."""
    return {"samples": torch.zeros(batch, *shape), **extra}


def noisy_latent(batch: int = 1, **extra) -> dict:
    """A latent with a random image in it."""
    return {"samples": torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(11)), **extra}


@dataclass(frozen=True)
class Graph:
    """The pack's nodes and a pair of prompts. Keyword arguments are KSampler's inputs, by default SAMPLING."""

    nodes: dict[str, type]
    positive: list
    negative: list

    def blend(self, files, weights: str = "", alignment: float | None = None, **options):
        """Load Reward LoRA for each file -> Blend Weights -> KL Interpolate (where `alignment` is given).

        files: names, or bases that were loaded before.
        """
        load, weigh, interpolate = (self.nodes[n] for n in ("LoadRewardLoRA", "BlendWeights", "KLInterpolate"))
        slots = {}
        for i, file in enumerate(files):
            slots[f"lora_{i}"] = file
            if isinstance(file, str):
                (slots[f"lora_{i}"],) = load.execute(lora_name=file, label=f"r{i}", kl_weight=0.0, scale=0.0).result
        (blend,) = weigh.execute(**{"loras": slots, "weights": weights, "normalise": True, **options}).result
        if alignment is not None:
            (blend,) = interpolate.execute(blend=blend, alignment=alignment).result
        return blend

    def whole(self, model, label: str = "whole", kl_weight: float = 0.0, **options):
        """Model as Reward LoRA: a basis."""
        node = self.nodes["ModelAsRewardLoRA"]
        return node.execute(model=model, label=label, kl_weight=kl_weight, **options).result[0]

    def blended(self, model, blend, execution: str = "batched", **inputs) -> Tensor:
        """Blended KSampler."""
        node = self.nodes["BlendedKSampler"]
        return node.execute(model=model, blend=blend, execution=execution, **self._inputs(inputs)).result[0]["samples"]

    def applied(self, model, blend, execution: str = "batched", evaluation: str = "exact", seed: int = 0, **inputs):
        """Apply Blend: a MODEL."""
        inputs |= {"model": model, "blend": blend, "evaluation": evaluation, "execution": execution, "seed": seed}
        return self.nodes["ApplyBlend"].execute(**inputs).result[0]

    def stochastic(self, model, blend, selection: str = "stratified", **inputs) -> tuple[Tensor, Tensor]:
        """Stochastic LS Sampler: its latents, and its choices as (images, steps) of 0 (base), 1, 2..."""
        node = self.nodes["StochasticLSSampler"]
        result, choices = node.execute(model=model, blend=blend, selection=selection, **self._inputs(inputs)).result
        names = ["base", *blend.names, "all"]
        lines = [line.split(": ", 1)[1].split(", ") for line in choices.splitlines()]
        return result["samples"], torch.tensor([[names.index(step.split(": ")[1]) for step in line] for line in lines])

    def msdda(self, model, blend, execution: str = "batched", etas: str = "1, 1, 1", base_eta: float = 1.0, **inputs):
        """MSDDA KSampler: its latents."""
        sampling = {name: value for name, value in self._inputs(inputs).items() if name != "sampler_name"}
        sampling |= {"execution": execution, "etas": etas, "base_eta": base_eta}
        return self.nodes["MSDDAKSampler"].execute(model=model, blend=blend, **sampling).result[0]["samples"]

    def plain(self, model, **inputs) -> Tensor:
        """ComfyUI's KSampler."""
        return KSampler().sample(model, **self._inputs(inputs))[0]["samples"]

    def _inputs(self, inputs: dict) -> dict:
        prompts = {"positive": self.positive, "negative": self.negative}
        return {"latent_image": latent(), **prompts, **SAMPLING, **inputs}
