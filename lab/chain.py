"""Prompts sampled on a base model's chain: guided predictions of a bank's variants, noise by seed, the steps' loop.

Diagnosis and evaluation sample with it; trainers/model/chain.py has the steps, trainers/model/guidance.py the guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..blend_core import LoRABank, Plan
from ..blend_core.network.execution import evaluate_variants
from ..blend_core.network.selection import Mixtures
from ..blend_core.parameterization import State
from ..blend_core.plan import Call
from ..pipelines.parameterization import Level
from ..trainers.model.base import Base
from ..trainers.model.chain import Step
from ..trainers.model.rollout import Predict
from ..trainers.seeding import ImageNoise

Evaluate = Callable[[Tensor, int, Tensor], Tensor]
"""evaluate(x (n, ...), k, variants (v, n)): predictions (v, sides * n, ...) before step k, unconditional rows first."""


class Sampler:
    """n images on a chain of steps. prompts, seeds: one per image.  cfg: the guidance scale.

    family: blend_core/gaussian's, ve or flow.  evaluations: of the network so far, per image, guidance counted as one.
    """

    def __init__(self, base: Base, steps: Sequence[Step], prompts: Sequence[str], seeds: Sequence[int], cfg: float):
        self.base_model, self.steps, self.prompts, self.seeds = base, steps, list(prompts), list(seeds)
        self.guidance = base.guidance(self.prompts, cfg)
        self.family = "flow" if base.family.transition == "flow" else "ve"
        self.evaluations = 0.0

    @property
    def levels(self) -> list[Level]:
        """The noise level before every step and after the last."""
        if self.family == "flow":
            last = Level(1.0, 0.0)
        else:
            final = float(self.base_model.pipe.scheduler.final_alpha_cumprod)
            last = Level(final**0.5, (1 - final) ** 0.5)
        return [*(Level(step.signal, step.noise) for step in self.steps), last]

    def noise(self, generators: Sequence[torch.Generator] | None = None) -> ImageNoise:
        """Standard normal noise (n, ...), one generator per image; by default from the seeds, as `generate` has it."""
        generators = generators or [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return ImageNoise(generators, self.base_model.latent_shape, torch.empty(0, device=self.base_model.device))

    def evaluation_of(self, bank: LoRABank, mixtures: Mixtures | None = None) -> Evaluate:
        """The unguided predictions of a bank's variants. mixtures: variants that are several of the bank's at once."""
        base = self.base_model
        attachment = bank.attach(base.network)
        attachment.mix(mixtures or {})

        def evaluate(x: Tensor, k: int, variants: Tensor) -> Tensor:
            self.evaluations += len(variants)
            rows = self.guidance.rows(x)
            inputs = {"x": rows, "conditions": self.guidance.conditions}

            def call(part: dict[str, Any], _variants: Tensor) -> Tensor:
                return base.call(base.network, part["x"], self.steps[k].timestep, part["conditions"])

            return evaluate_variants(call, inputs, len(rows), variants, attachment, 1)

        return evaluate

    def denoised(self, evaluate: Evaluate, x: Tensor, k: int, variants: Tensor) -> Tensor:
        """The guided predictions of x0 before step k by variants (v, n), (v, n, ...)."""
        return self.steps[k].x0(x, self.guidance.guided(evaluate(x, k, variants)))

    def predictor(self, bank: LoRABank, plan: Plan) -> Predict:
        """The guided prediction that a plan makes of a bank's variants."""
        evaluate = self.evaluation_of(bank, plan.mixtures)

        def predict(x: Tensor, k: int) -> Tensor:
            step, rows = self.steps[k], self.guidance.rows(x)
            if not plan.needs_denoised:
                return self.guidance.guided(plan(lambda variants: evaluate(x, k, variants), k))
            call = Call(state=State(rows, step.signal, step.noise))
            denoised = plan(lambda variants: step.x0(rows, evaluate(x, k, variants)), k, call=call)
            return self.guidance.guided((denoised - step.x0_keep * rows) / step.x0_gain)

        return predict

    def walk(self, x: Tensor, steps: Iterable[int], predict: Predict, noise: Callable[[], Tensor]) -> Tensor:
        """The state after some steps from x; noise() is called once per step."""
        for k in steps:
            step = self.steps[k]
            x = step.mean(x, predict(x, k)) + step.sigma * noise()
        return x
