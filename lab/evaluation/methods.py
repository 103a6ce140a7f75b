"""The methods, one function each: sample(batch, point) -> clean latents (n, ...).

base         the pretrained model
basis        each reward LoRA alone
merged       the LoRAs added up in one network, as stacked LoRAs are (soup of deltas)
soup_factors the paper's soup: the LoRAs' factors A and B averaged separately (soup.py)
mpa          DB-MPA (arXiv 2505.18547): predictions blended by the preference
kla          DB-KLA: the same at every alignment
random       DB-MPA-LS: one LoRA per step, drawn
stratified   one per step, in its share
budget       little more than one per step, the others remembered
msdda        reverse steps fused (arXiv 2604.14379)
rlg          RL guidance (arXiv 2508.21016): base + scale * (basis - base)
best_of_n    n images of the base, the best by weighted reward
code         CoDe (arXiv 2502.00968): the best of n after every block of steps
rgg          reward gradient on the predicted x0, normalised
oracle       a LoRA trained for the very preference (MORL)
export       the merged blend as one LoRA file, as `diffusion-blend export` writes it
distilled    a LoRA distilled from the exact blend of the very preference
merged_dial, oracle_dial   merged and oracle at every alignment, to be compared with kla at equal path KL

Those of LoRAs are sampled at every `until` of the protocol: after that share of the steps the base model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...blend_core import EVALUATIONS, Blend, LoRABank
from ...blend_core.estimators import check_evaluation, exact
from ...blend_core.gaussian import basis_etas
from ...blend_core.plan import cut
from ...pipelines.fusion import fused_latents
from .host import Batch, LoRAs
from .protocol import Protocol, Search, distilled_files, oracle_files


@dataclass(frozen=True)
class EvaluationPoint:
    """What one row of the tables is about. preference: over the rewards, () for the base.  alignment: lambda.

    until: the share of the steps after which the base is alone.
    """

    method: str
    preference: tuple[float, ...]
    alignment: float = 1.0
    search: Search = field(default_factory=Search)
    until: float = 1.0


@dataclass(frozen=True)
class Method:
    """sample: the function.  points: the (preference, alignment) pairs a protocol asks of it.

    blends: whether it moves the means of the base's steps and nothing else, so that the path KL is defined.
    cuts: whether it has LoRAs that can be left out of the last steps.
    """

    title: str
    sample: Callable[[Batch, EvaluationPoint], Tensor]
    points: Callable[[Protocol], list[tuple[tuple[float, ...], float]]]
    blends: bool = True
    cuts: bool = True


def base(batch: Batch, point: EvaluationPoint) -> Tensor:
    """The pretrained model."""
    return batch.sample(batch.base)


def blended(batch: Batch, point: EvaluationPoint, evaluation: str = "exact") -> Tensor:
    """sum_i c_i prediction_i with c_i = alignment * w_i * alpha_i / alpha_target, by an evaluation of blend_core."""
    return _planned(batch, batch.host.bank, coefficients_of(batch.host.loras, point), point.until, evaluation)


def evaluated(evaluation: str) -> Callable[[Batch, EvaluationPoint], Tensor]:
    """The blend by another evaluation than exact."""
    return lambda batch, point: blended(batch, point, evaluation)


def rlg(batch: Batch, point: EvaluationPoint) -> Tensor:
    """base + scale * (basis - base) at a one-hot preference; scale is the point's alignment."""
    return _planned(batch, batch.host.bank, rlg_coefficients(point.preference, point.alignment), point.until)


def soup_factors(batch: Batch, point: EvaluationPoint) -> Tensor:
    """One LoRA of the averaged factors."""
    return _planned(batch, batch.host.soup(coefficients_of(batch.host.loras, point)[1:]), (0.0, 1.0), point.until)


def single(kind: str) -> Callable[[Batch, EvaluationPoint], Tensor]:
    """One LoRA for this preference (oracle: trained for it; export, distilled: made of its blend), at the alignment."""

    def sample(batch: Batch, point: EvaluationPoint) -> Tensor:
        bank, coefficients = batch.host.single(kind, point.preference), rlg_coefficients((1.0,), point.alignment)
        return _planned(batch, bank, coefficients, point.until)

    return sample


def msdda(batch: Batch, point: EvaluationPoint) -> Tensor:
    """Each basis takes its own reverse step, at the eta its file states (else the chain's); the steps are fused."""
    loras, sampling = batch.host.loras, batch.host.sampling
    chain_eta = sampling.eta if batch.family == "ve" and sampling.eta > 0 else 1.0
    etas = basis_etas((), [eta or chain_eta for eta in loras.etas], chain_eta)
    table = cut(coefficients_of(loras, point), len(batch.steps), point.until)
    plan = exact(table, len(batch.steps), batch.seeds)
    evaluate, noise, levels = batch.evaluation_of(batch.host.bank), batch.noise(), batch.levels
    x = noise()
    for k in range(len(batch.steps)):
        variants, coefficients = plan.active(k)
        denoised = batch.denoised(evaluate, x, k, variants)
        used = [etas[variant] for variant in variants[:, 0].tolist()]
        x = fused_latents(x, denoised, (levels[k], levels[k + 1]), used, coefficients.tolist(), batch.family, noise)
    return x


def best_of_n(batch: Batch, point: EvaluationPoint) -> Tensor:
    """The best of n images of the base by weighted reward; n = 1 is the base."""
    ends = [batch.sample(batch.base, batch.candidate_noise(i)) for i in range(point.search.candidates)]
    return _best(batch, ends, len(batch.steps), point.preference)


def code(batch: Batch, point: EvaluationPoint) -> Tensor:
    """CoDe: n ways on through every block of steps, of which the one with the best predicted image goes on.

    With n = 1 it is the base.
    """
    steps = range(len(batch.steps))
    sources = [batch.candidate_noise(i) for i in range(point.search.candidates)]
    x = sources[0]()
    for start in steps[:: point.search.block]:
        block = steps[start : start + point.search.block]
        ends = [batch.walk(x, block, batch.base, noise) for noise in sources]
        x = _best(batch, ends, block[-1] + 1, point.preference)
    return x


def rgg(batch: Batch, point: EvaluationPoint) -> Tensor:
    """Every mean moves by scale * sigma * sqrt(d) * g / |g|, g the gradient at x of the weighted reward of x0(x).

    d: dimensions of an image's latents, so that scale 1 is as long as the step's noise. Scale 0 is the base.
    """

    def predict(x: Tensor, k: int) -> Tensor:
        step = batch.steps[k]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = batch.base(leaf, k)
            images = batch.host.base.decode(step.x0(leaf, prediction))
            total = batch.host.total(point.preference, images, batch.prompts).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.dim() - 1))
        push = point.search.gradient_scale * step.sigma * x[0].numel() ** 0.5 * gradient / length
        return prediction.detach() + push / step.gain

    return batch.sample(predict)


def coefficients_of(loras: LoRAs, point: EvaluationPoint) -> tuple[float, ...]:
    """(1 + m,), base first: what the LoRAs' own KL weights and the point's alignment make of its preference."""
    return Blend(loras.names, point.preference, point.alignment, loras.kl_weights).coefficients


def rlg_coefficients(basis: Sequence[float], scale: float) -> tuple[float, ...]:
    """(1 + m,) of base + scale * (basis - base). basis: (m,), one-hot."""
    return (1 - scale * sum(basis), *(scale * share for share in basis))


def _planned(
    batch: Batch, bank: LoRABank, coefficients: Sequence[float], until: float, evaluation: str = "exact"
) -> Tensor:
    steps = len(batch.steps)
    plan = EVALUATIONS[evaluation](cut(coefficients, steps, until), steps, batch.choice_seeds)
    return batch.sample(batch.predictor(bank, plan))


def _best(batch: Batch, ends: Sequence[Tensor], k: int, preference: Sequence[float]) -> Tensor:
    """Of each image the state with the highest value before step k. ends: (n, ...) each."""
    if len(ends) == 1:
        return ends[0]
    best = torch.stack([batch.value(x, k, preference) for x in ends]).argmax(0).to(ends[0].device)
    return torch.stack(list(ends))[best, torch.arange(len(best), device=best.device)]


def _once(protocol: Protocol):
    return [((), 0.0)]


def _one_hot(protocol: Protocol):
    count = len(protocol.models.loras)
    return [(tuple(float(i == j) for j in range(count)), 1.0) for i in range(count)]


def _preferences(protocol: Protocol):
    return [(preference, 1.0) for preference in protocol.preferences]


def _dial(protocol: Protocol):
    return [(preference, alignment) for preference in protocol.dial_preferences for alignment in protocol.alignments]


def _scales(protocol: Protocol):
    return [(preference, alignment) for preference, _ in _one_hot(protocol) for alignment in protocol.alignments]


def _with_oracles(protocol: Protocol):
    return [(preference, 1.0) for preference in oracle_files(protocol)]


def _with_distilled(protocol: Protocol):
    return [(preference, 1.0) for preference in distilled_files(protocol)]


def _oracle_dial(protocol: Protocol):
    files = oracle_files(protocol)
    return [(preference, alignment) for preference, alignment in _dial(protocol) if preference in files]


DIALS = {"kla": "mpa", "merged_dial": "merged", "oracle_dial": "oracle"}  # at alignment 1 each is its method
METHODS: dict[str, Method] = {
    "base": Method("base", base, _once, cuts=False),
    "basis": Method("one LoRA", blended, _one_hot),
    "merged": Method("merged (delta soup)", evaluated("merged"), _preferences),
    "mpa": Method("DB-MPA", blended, _preferences),
    "kla": Method("DB-KLA", blended, _dial),
    "random": Method("DB-MPA-LS", evaluated("random"), _preferences),
    "stratified": Method("stratified", evaluated("stratified"), _preferences),
    "budget": Method("budget", evaluated("budget"), _preferences),
    "msdda": Method("MSDDA", msdda, _preferences, blends=False),
    "rlg": Method("RLG", rlg, _scales),
    "best_of_n": Method("best of n", best_of_n, _preferences, blends=False, cuts=False),
    "code": Method("CoDe", code, _preferences, blends=False, cuts=False),
    "rgg": Method("RGG", rgg, _preferences, cuts=False),
    "oracle": Method("MORL oracle", single("oracle"), _with_oracles),
    "merged_dial": Method("soup, dial", evaluated("merged"), _dial),
    "oracle_dial": Method("oracle, dial", single("oracle"), _oracle_dial),
    "soup_factors": Method("soup of factors", soup_factors, _preferences),
    "export": Method("export", single("export"), _preferences),
    "distilled": Method("distilled", single("distilled"), _with_distilled),
}


def points_of(protocol: Protocol) -> Iterator[EvaluationPoint]:
    """Every point of an evaluation, in the order of its tables. Raises BlendError for an unknown method."""
    for name in dict.fromkeys(protocol.methods):
        check_evaluation("a name in methods", name, METHODS)
        for until in protocol.untils if METHODS[name].cuts else (1.0,):
            for preference, alignment in METHODS[name].points(protocol):
                yield EvaluationPoint(name, preference, alignment, protocol.search, until)


def title_of(method: str, until: float) -> str:
    """What the tables call a method, with the share of the steps that its LoRAs act in where it is not all."""
    return METHODS[method].title + ("" if until == 1 else f", until {until:g}")
