"""The methods, one function each: sample(batch, point) -> clean latents (n, ...).

base         the pretrained model
basis        each reward LoRA alone
merged       the LoRAs added up in one network, as stacked LoRAs are (rewarded soup)
mpa          DB-MPA (arXiv 2505.18547): predictions blended by the preference
kla          DB-KLA: the same at every alignment
sampled      DB-MPA-LS: one LoRA per step, drawn
stratified   one per step, in its share
control_variate, budget   one per step or little more, the others remembered
msdda        reverse steps fused (arXiv 2604.14379)
rlg          RL guidance (arXiv 2508.21016): base + scale * (basis - base)
best_of_n    n images of the base, the best by weighted reward
code         CoDe (arXiv 2502.00968): the best of n after every block of steps
rgg          reward gradient on the predicted x0, normalised
oracle       a LoRA trained for the very preference (MORL)
merged_dial, oracle_dial   merged and oracle at every alignment, to be compared with kla at equal path KL

Those of LoRAs are sampled at every `until` of the protocol: after that share of the steps the base model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...blend_core import ESTIMATORS, Blend, BlendError, LoRABank, cut, exact
from ...blend_core.gaussian import basis_etas, fused_step
from .host import Batch, LoRAs
from .protocol import Protocol, Search


@dataclass(frozen=True)
class Point:
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
    sample: Callable[[Batch, Point], Tensor]
    points: Callable[[Protocol], list[tuple[tuple[float, ...], float]]]
    blends: bool = True
    cuts: bool = True


def base(batch: Batch, point: Point) -> Tensor:
    """The pretrained model."""
    return batch.sample(batch.base)


def blended(batch: Batch, point: Point, estimator: str = "exact") -> Tensor:
    """sum_i c_i prediction_i with c_i = alignment * w_i * alpha_i / alpha_target, by an estimator of blend_core."""
    return _planned(batch, batch.host.bank, coefficients(batch.host.loras, point), point.until, estimator)


def estimated(estimator: str) -> Callable[[Batch, Point], Tensor]:
    """The blend by another estimator than exact."""
    return lambda batch, point: blended(batch, point, estimator)


def rlg(batch: Batch, point: Point) -> Tensor:
    """base + scale * (basis - base) at a one-hot preference; scale is the point's alignment."""
    return _planned(batch, batch.host.bank, rlg_coefficients(point.preference, point.alignment), point.until)


def oracle(batch: Batch, point: Point) -> Tensor:
    """The LoRA trained for this preference, at the point's alignment."""
    bank, weights = batch.host.oracle(point.preference), rlg_coefficients((1.0,), point.alignment)
    return _planned(batch, bank, weights, point.until)


def msdda(batch: Batch, point: Point) -> Tensor:
    """Each basis takes its own reverse step, at the eta its file states (else the chain's); the steps are fused."""
    host, loras = batch.host, batch.host.loras
    flow = host.base.family.transition == "flow"
    own = host.sampling.eta if not flow and host.sampling.eta > 0 else 1.0
    etas = basis_etas((), [eta or own for eta in loras.etas], own)
    weights = cut(coefficients(loras, point), len(host.chain), point.until)
    plan = exact(weights, len(host.chain), batch.seeds)
    evaluate, noise, levels = batch.variants_at(host.bank), batch.noise(), host.levels
    x = noise()
    for k, step in enumerate(host.chain):
        variants, weights = plan.active(k)
        denoised = step.x0(x, batch.guidance.guided(evaluate(x, k, variants)))
        (signal, now), (signal_next, after) = levels[k], levels[k + 1]
        scale, scale_next = (1.0, 1.0) if flow else (signal, signal_next)
        used = [etas[variant] for variant in variants[:, 0].tolist()]
        sigmas = now / scale, after / scale_next
        x, spread = fused_step(x / scale, denoised, *sigmas, used, weights.tolist(), "flow" if flow else "ve")
        x = scale_next * (x + spread * noise())
    return x


def best_of_n(batch: Batch, point: Point) -> Tensor:
    """The best of n images of the base by weighted reward; n = 1 is the base."""
    ends = [batch.sample(batch.base, batch.noise(i)) for i in range(point.search.candidates)]
    return _best(batch, ends, len(batch.host.chain), point.preference)


def code(batch: Batch, point: Point) -> Tensor:
    """CoDe: n ways on through every block of steps, of which the one with the best predicted image goes on.

    With n = 1 it is the base.
    """
    steps = range(len(batch.host.chain))
    sources = [batch.noise(i) for i in range(point.search.candidates)]
    x = sources[0]()
    for start in steps[:: point.search.block]:
        block = steps[start : start + point.search.block]
        ends = [batch.walk(x, block, batch.base, noise) for noise in sources]
        x = _best(batch, ends, block[-1] + 1, point.preference)
    return x


def rgg(batch: Batch, point: Point) -> Tensor:
    """Every mean moves by scale * sigma * sqrt(d) * g / |g|, g the gradient at x of the weighted reward of x0(x).

    d: dimensions of an image's latents, so that scale 1 is as long as the step's noise. Scale 0 is the base.
    """

    def predict(x: Tensor, k: int) -> Tensor:
        step = batch.host.chain[k]
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


def coefficients(loras: LoRAs, point: Point) -> tuple[float, ...]:
    """(1 + m,), base first: what the LoRAs' own KL weights and the point's alignment make of its preference."""
    return Blend(loras.names, point.preference, point.alignment, loras.kl_weights).coefficients


def rlg_coefficients(basis: Sequence[float], scale: float) -> tuple[float, ...]:
    """(1 + m,) of base + scale * (basis - base). basis: (m,), one-hot."""
    return (1 - scale * sum(basis), *(scale * share for share in basis))


def _planned(batch: Batch, bank: LoRABank, weights: Sequence[float], until: float, estimator: str = "exact") -> Tensor:
    steps = len(batch.host.chain)
    plan = ESTIMATORS[estimator](cut(weights, steps, until), steps, batch.choice_seeds)
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
    return [(preference, each) for preference in protocol.dial_preferences for each in protocol.alignments]


def _scales(protocol: Protocol):
    return [(preference, each) for preference, _ in _one_hot(protocol) for each in protocol.alignments]


def _with_oracles(protocol: Protocol):
    return [(preference, 1.0) for preference in oracle_files(protocol)]


def _oracle_dial(protocol: Protocol):
    known = oracle_files(protocol)
    return [(preference, each) for preference, each in _dial(protocol) if preference in known]


DIALS = {"kla": "mpa", "merged_dial": "merged", "oracle_dial": "oracle"}  # at alignment 1 each is its method
METHODS: dict[str, Method] = {
    "base": Method("base", base, _once, cuts=False),
    "basis": Method("one LoRA", blended, _one_hot),
    "merged": Method("rewarded soup", estimated("merged"), _preferences),
    "mpa": Method("DB-MPA", blended, _preferences),
    "kla": Method("DB-KLA", blended, _dial),
    "sampled": Method("DB-MPA-LS", estimated("sampled"), _preferences),
    "stratified": Method("stratified", estimated("stratified"), _preferences),
    "control_variate": Method("control variate", estimated("control_variate"), _preferences),
    "budget": Method("budget", estimated("budget"), _preferences),
    "msdda": Method("MSDDA", msdda, _preferences, blends=False),
    "rlg": Method("RLG", rlg, _scales),
    "best_of_n": Method("best of n", best_of_n, _preferences, blends=False, cuts=False),
    "code": Method("CoDe", code, _preferences, blends=False, cuts=False),
    "rgg": Method("RGG", rgg, _preferences, cuts=False),
    "oracle": Method("MORL oracle", oracle, _with_oracles),
    "merged_dial": Method("soup, dial", estimated("merged"), _dial),
    "oracle_dial": Method("oracle, dial", oracle, _oracle_dial),
}


def points_of(protocol: Protocol) -> Iterator[Point]:
    """Every point of an evaluation, in the order of its tables. Raises BlendError for an unknown method."""
    for name in dict.fromkeys(protocol.methods):
        if name not in METHODS:
            raise BlendError(f"a method is {name!r}, expected some of {', '.join(METHODS)}. Correct methods.")
        for until in protocol.untils if METHODS[name].cuts else (1.0,):
            for preference, alignment in METHODS[name].points(protocol):
                yield Point(name, preference, alignment, protocol.search, until)


def title_of(method: str, until: float) -> str:
    """What the tables call a method, with the share of the steps that its LoRAs act in where it is not all."""
    return METHODS[method].title + ("" if until == 1 else f", until {until:g}")


def oracle_files(protocol: Protocol) -> dict[tuple[float, ...], str]:
    """preference -> LoRA file. Raises BlendError for another form than '0.5, 0.5=PATH'."""
    files = {}
    for option in protocol.models.oracles:
        words, _, path = option.partition("=")
        try:
            preference = tuple(float(word) for word in words.replace(",", " ").split())
        except ValueError:
            preference = ()
        if not path or preference not in protocol.preferences:
            raise BlendError(
                f"an oracle is {option!r}, expected one of the protocol's preferences and a file, such as "
                f"'{', '.join(map(str, protocol.preferences[0]))}=oracle.safetensors'. Correct models.oracles."
            )
        files[preference] = path
    return files
