"""Images of a blend from a diffusers pipeline, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..blend_core import EVALUATIONS, Blend, BlendError, LoRABank, Plan, Target
from ..blend_core.adapters import Change
from ..blend_core.estimators import Estimator, budget, check_evaluation, exact, image_seed
from ..blend_core.gaussian import basis_etas
from ..blend_core.plan import check_until, cut
from .fusion import check_scheduler, fused
from .host import blended
from .loading import takes_eta

PIPELINE_EVALUATIONS = (*EVALUATIONS, "msdda", "base")


@dataclass(frozen=True)
class Sampling:
    """How a pipeline samples. steps: denoising steps.  eta: DDIM's, 0 deterministic, 1 ancestral.  cfg: guidance."""

    steps: int = 30
    eta: float = 0.0
    cfg: float = 7.5
    size: int | None = None  # pixels of each side; None: the model's own
    execution: str = "sequential"

    def options_for(self, pipe: DiffusionPipeline) -> dict:
        """Arguments of the pipeline's call. Raises BlendError for an eta that it would ignore."""
        options = {"num_inference_steps": self.steps, "guidance_scale": self.cfg}
        if self.size is not None:
            options |= {"height": self.size, "width": self.size}
        if takes_eta(pipe):
            return options | {"eta": self.eta}
        if self.eta != 0:
            raise BlendError(
                f"eta is {self.eta:g}, but {type(pipe).__name__} takes none: its sampler is deterministic. "
                "Set eta to 0."
            )
        return options


@dataclass(frozen=True)
class BlendEvaluation:
    """How a pipeline evaluates a blend: a bank, and the coefficients of its variants under an estimator.

    etas: how ancestral each variant's step is, base first, where steps are fused; None: predictions are blended.
    until: the share of the steps after which the base model is alone.
    """

    bank: LoRABank | None
    coefficients: tuple[float, ...]
    estimator: Estimator
    etas: tuple[float, ...] | None = None
    until: float = 1.0

    @classmethod
    def of(
        cls,
        name: str,
        blend: Blend,
        factors: Sequence[Mapping[Target, Change]],
        etas: Sequence[float] = (),
        base_eta: float = 1.0,
        evaluations: float | None = None,
        until: float = 1.0,
    ) -> BlendEvaluation:
        """The evaluation of that name, one of PIPELINE_EVALUATIONS. Raises BlendError for what it cannot take.

        Those of EVALUATIONS: the blend of predictions, or under merged one prediction of all LoRAs added up.
        evaluations: for budget, the average per step, by default BUDGET.  msdda: the bases' steps fused.  base: no
        LoRA.  etas: for msdda, one per reward LoRA, above 0 and up to 1; none: all 1, ancestral.  base_eta: the same
        for the base model.  until: the share of the steps after which the base model is alone.
        """
        check_until(until)
        check_evaluation("evaluation", name, PIPELINE_EVALUATIONS)
        if name != "msdda" and (etas or base_eta != 1):
            raise BlendError(
                f"etas or base_eta came for the evaluation {name}, which fuses no steps. Leave them out, or choose "
                "msdda."
            )
        if name != "budget" and evaluations is not None:
            raise BlendError(
                f"a budget came for the evaluation {name}, which has none. Leave it out, or choose budget."
            )
        if name == "base":
            return cls(None, (1.0,), exact)
        if name == "msdda":
            etas = basis_etas(etas, [None] * len(factors), base_eta)
            return cls(LoRABank(factors), blend.coefficients, exact, etas, until)
        estimator = EVALUATIONS[name] if evaluations is None else partial(budget, evaluations=evaluations)
        evaluation = cls(LoRABank(factors), blend.coefficients, estimator, until=until)
        evaluation.check_coefficients()
        return evaluation

    def check_coefficients(self) -> None:
        """Raise BlendError for coefficients that the estimator cannot take."""
        self.plan(1, [0])

    def plan(self, steps: int, seeds: Sequence[int]) -> Plan:
        """The plan of one batch; every image's choices come from its own seed, and from no stream of the sampler's."""
        coefficients = cut(self.coefficients, steps, self.until)
        return self.estimator(coefficients, steps, [image_seed(seed, 0) for seed in seeds])

    def check(self, pipe: DiffusionPipeline, sampling: Sampling) -> None:
        """Raise BlendError for what the pipeline, or this evaluation on it, cannot do."""
        sampling.options_for(pipe)
        if self.etas is None:
            return
        check_scheduler(pipe)
        if sampling.eta != 0:
            raise BlendError(
                f"eta is {sampling.eta:g}, but msdda has one per basis. Leave eta at 0, and give etas (and base_eta)."
            )

    def active(self, pipe: DiffusionPipeline, plan: Plan, generators: Sequence[torch.Generator], execution: str):
        """The context in which `pipe` samples so."""
        if self.bank is None:
            return nullcontext()
        if self.etas is None:
            return blended(pipe, self.bank, plan, execution)
        return fused(pipe, self.bank, plan, self.etas, generators, execution)


def generate(
    pipe: DiffusionPipeline,
    evaluation: BlendEvaluation,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    plan: Plan | None = None,
) -> Tensor:
    """Images (batch, 3, height, width) in [0, 1], float32 on the CPU: prompts[i] from seeds[i].

    Each image has a generator of its own, so a batch holds the images that its prompts and seeds give one by one (to
    rounding). plan: one that the evaluation made for these steps and seeds, for who wants to ask it afterwards what it
    spent. Raises BlendError for an eta that the pipeline would ignore, and for msdda on an unknown scheduler.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]  # the CPU's: the same on every device
    plan = plan or evaluation.plan(sampling.steps, seeds)
    evaluation.check(pipe, sampling)
    with evaluation.active(pipe, plan, generators, sampling.execution), torch.no_grad():
        output = pipe(
            prompt=list(prompts),
            generator=generators,
            output_type="pt",
            **sampling.options_for(pipe),
        )
    return output.images.float().cpu()
