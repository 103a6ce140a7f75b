"""A blend's run for a diagnosis: all predictions at every step, images of the base's posterior, and of either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...blend_core import LoRABank
from ...blend_core.diagnostics import Disagreement, disagreement, posterior_samples
from ...blend_core.gaussian import reverse_step
from ...blend_core.network.selection import Mixtures
from ...trainers.seeding import stream
from ..chain import Sampler

Predict = Callable[[Tensor, int], Tensor]
"""denoised(x, k): the guided prediction of x0 before step k, shaped as x."""


class BlendRun:
    """A blend's run in the coordinates of blend_core/gaussian, x = x0 + sigma n or flow's, down to sigma 0.

    together: the variant that is all LoRAs added up, with its coefficients; none where it is the base or one LoRA.
    progress: is called with the number of evaluations done.
    """

    def __init__(self, sampler: Sampler, bank: LoRABank, together: Mixtures, progress: Callable[[int], object]):
        self.sampler, self.together, self.progress = sampler, together, progress
        self.evaluate = sampler.evaluation_of(bank, together)
        levels = sampler.levels[:-1]
        self.scales = [level.scale(sampler.family) for level in levels]
        self.sigmas = [*(level.sigma(sampler.family) for level in levels), 0.0]

    def base_denoised(self, x: Tensor, k: int) -> Tensor:
        """The base model's guided prediction of x0 before step k, shaped as x."""
        return self.denoised(x, k, (0,))[0]

    def merged_denoised(self, x: Tensor, k: int) -> Tensor:
        """The guided prediction by all LoRAs added up, shaped as x."""
        return self.denoised(x, k, tuple(self.together))[0]

    def denoised(self, x: Tensor, k: int, variants: Sequence[int]) -> Tensor:
        """The guided predictions of x0 by variants (0: the base) before step k, (variants, n, ...)."""
        numbers = torch.tensor(variants)[:, None].expand(-1, len(x))
        predictions = self.sampler.denoised(self.evaluate, x * self.scales[k], k, numbers)
        self.progress(len(variants))
        return predictions

    def recorded(self, coefficients: Sequence[float], eta: float) -> tuple[list[Disagreement], list[Tensor]]:
        """The blend's run: how the bases disagree before every step, and the states before it."""
        disagreements, states = [], []

        def predict(x: Tensor, k: int) -> Tensor:
            denoised = self.denoised(x, k, range(len(coefficients)))
            at_once = self.merged_denoised(x, k) if self.together else None
            disagreements.append(disagreement(x, denoised, coefficients, k, self.sigmas[k], at_once))
            states.append(x)
            return _sum(coefficients, denoised)

        self.clean(predict, eta)
        return disagreements, states

    def clean(self, predict: Predict, eta: float) -> Tensor:
        """The latents at the end of a run from the seeds' noise, (n, ...)."""
        noise, family = self.sampler.noise(), self.sampler.family
        x = noise() * (1 / self.scales[0])
        for k, (sigma, sigma_next) in enumerate(pairwise(self.sigmas)):
            x, spread = reverse_step(x, predict(x, k), sigma, sigma_next, eta, family)
            x = x + spread * noise() if spread > 0 else x
        return x

    def images_both_ways(self, coefficients: Sequence[float], eta: float) -> tuple[Tensor, Tensor]:
        """Images (n, 3, h, w) by exact and by merged evaluation, from the same noise."""
        active = [variant for variant, coefficient in enumerate(coefficients) if coefficient != 0]
        weights = [coefficients[variant] for variant in active]
        ways = (lambda x, k: _sum(weights, self.denoised(x, k, active)), self.merged_denoised)
        exact, merged = (self.sampler.base_model.decode(self.clean(predict, eta)) for predict in ways)
        return exact, merged

    def posterior_images(self, x: Tensor, k: int, number: int) -> Tensor:
        """Images (n, 3, h, w) of the base model given the states x before step k, one each; number: of the draw."""
        seeds = enumerate(self.sampler.seeds)
        noise = self.sampler.noise([stream(seed, "posterior", k, number, i) for i, seed in seeds])
        latents = posterior_samples(self.base_denoised, x, self.sigmas, k, self.sampler.family, noise)
        return self.sampler.base_model.decode(latents)


def _sum(coefficients: Sequence[float], denoised: Tensor) -> Tensor:
    """sum_i c_i D_i; denoised: (k, n, ...)."""
    return (torch.tensor(coefficients).to(denoised).view(-1, *[1] * (denoised.dim() - 1)) * denoised).sum(0)
