"""Control variates: one evaluation per step, and what the other variants predicted when they were last asked.

They speak of denoised predictions. From step to step these drift far less than the bases differ, where eps and v change
with the noise level itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .parameterization import State
from .plan import UNNAMED, Call, Evaluate, Plan, weighed

FRESH = 0.3  # share of new noise above which a step is taken for one of a stochastic sampler; those have 0.4 to 0.7


@dataclass
class Memory:
    """What a run has seen. evaluated: variants asked for, by step.  tracks: what is remembered, by call.

    last: (k, batch), the step of each variant's evaluation before this one.  drifts: of every call after the first
    step, how far predictions moved per step.
    """

    step: int = -1
    full: bool = False
    evaluated: dict[int, int] = field(default_factory=dict)
    tracks: dict[Hashable, Track] = field(default_factory=dict)
    last: Tensor | None = None
    drifts: list[Tensor] = field(default_factory=list)


@dataclass
class Track:
    """What one call of the network remembers of the k variants, for each of its rows.

    known: (k, rows, ...), the last predictions.  slope: their change per step then.  misses: (2, rows), how far new
    predictions lay from what was foreseen of them by holding and by extending, squared, summed over the run.
    start: the first state and the prediction made there, until the next one is seen.  fresh: (rows,), whether the step
    in between added noise.
    """

    known: Tensor
    slope: Tensor
    misses: Tensor
    fresh: Tensor
    start: tuple[State, Tensor] | None

    @classmethod
    def of(cls, predictions: Tensor, estimate: Tensor, state: State | None) -> Track:
        """The track that begins with predictions of all variants."""
        rows = predictions.shape[1]
        misses = torch.zeros(2, rows, device=predictions.device)
        fresh = torch.zeros(rows, dtype=torch.bool, device=predictions.device)
        return cls(predictions, torch.zeros_like(predictions), misses, fresh, state and (state, estimate))

    def look(self, state: State | None) -> None:
        """Note at the second state whether the sampler adds noise."""
        if self.start is not None and state is not None:
            self.fresh = state.freshness(*self.start) > FRESH
        self.start = None


@dataclass(frozen=True)
class TrackedPlan(Plan):
    """Control variates. P_j: what is foreseen of variant j from its last evaluation, g_j steps ago; D_i: the variant of
    this step.

        estimate = sum_j c_j P_j + c_i (1 + b(g_i)) (D_i - P_i)

    P_j is the last prediction, held or extended by its slope: per image what was nearer so far. b pays back: while i
    was not asked, P_i fell behind to the whole difference in a line (held) or a parabola (extended), b(g) times that in
    all. As in SAGA (arXiv 1407.0202) the estimate is exact where nothing moves, and no error adds up. Any sign of the
    coefficients. A full step asks all variants: the first; while `spare` lasts the second, which gives every slope at
    once, and those that follow a drift above the run's average; with enough for all of them, every step.

    Where the sampler adds fresh noise the past foresees little, and an image takes D_i alone: the stratified choice,
    whose errors cancel over the steps. Blends with coefficients below 0, which have no shares, are always foreseen.

    variants: what a step asks that is not full.  bases: (k,), all variants that are blended.  coefficients: (steps, k),
    theirs; where a step has one at most, it is the prediction of its variant, exactly.
    spare: evaluations that may be made beyond one per step. A run that begins again at an earlier step forgets.
    """

    bases: Tensor
    coefficients: Tensor
    spare: int
    memory: Memory = field(default_factory=Memory, compare=False)

    needs_denoised: ClassVar[bool] = True

    @classmethod
    def of(cls, choices: Tensor, bases: Tensor, coefficients: Tensor, spare: int) -> TrackedPlan:
        """choices: (steps, batch), one variant per step and image."""
        ones = torch.ones(len(choices), 1, dtype=torch.float64)
        return cls(choices[:, None, :], ones, bases, coefficients, spare)

    def part(self, start: int, steps: int) -> TrackedPlan:
        """The plan of some steps, with their share of the spare evaluations and a memory of its own."""
        whole, part = len(self.variants), super().part(start, steps)
        if part is self:
            return self
        coefficients = self.coefficients[start : start + steps]
        return replace(part, coefficients=coefficients, spare=self.spare * steps // whole, memory=Memory())

    @property
    def evaluations_per_step(self) -> float:
        """The average of the run so far; before it, what it may come to."""
        if self.memory.evaluated:
            return sum(self.memory.evaluated.values()) / len(self.memory.evaluated)
        return 1 + max(self.spare, self.cost_of_full) / len(self.variants)

    @property
    def cost_of_full(self) -> int:
        """Evaluations that a full step makes beyond one."""
        return len(self.bases) - 1

    def is_blend(self, step: int) -> bool:
        """Whether `step` blends several variants; else it asks one, and nothing of it is remembered."""
        return sum(map(bool, self.coefficients[step].tolist())) > 1

    def single(self, evaluate: Evaluate, step: int, images: int) -> Tensor:
        """The prediction, (rows, ...), of a step that is no blend."""
        if step < self.memory.step:
            self.memory.__init__()
        self.memory.evaluated[step] = 1
        return evaluate(self.for_images(step, images))[0]

    @property
    def left(self) -> int:
        """Spare evaluations that were not spent yet."""
        return self.spare - sum(count - 1 for count in self.memory.evaluated.values())

    @property
    def most_per_step(self) -> int:
        """All of them, in a full step."""
        return 1 + self.cost_of_full

    def release(self) -> None:
        """Let go of the predictions, which lie where the network is."""
        self.memory.tracks.clear()
        self.memory.drifts.clear()

    def is_full(self, step: int) -> bool:
        """Whether a step of the run asked all variants."""
        return self.memory.evaluated.get(step, 0) > len(self.variants[step])

    def everything(self, images: int) -> Tensor:
        """All variants for every image, (k, images)."""
        return self.bases[:, None].repeat(1, images)

    def __call__(self, evaluate: Evaluate, step: int, images: int | None = None, call: Call = UNNAMED) -> Tensor:
        """The estimate of `step`, (rows, ...). A call that has no track yet is evaluated in full."""
        images = images or self.batch
        if not self.is_blend(step):
            return self.single(evaluate, step, images)
        choices = self.for_images(step, images)
        self._begin(step)
        track = self.memory.tracks.get(call.name)
        if track is None:
            predictions = evaluate(self.everything(images))
            estimate = weighed(self.coefficients[step], predictions)
            self.memory.tracks[call.name] = Track.of(predictions, estimate, call.state)
            return estimate
        track.look(call.state)
        asked = self.everything(images) if self.memory.full else choices
        return self._estimate(track, torch.searchsorted(self.bases, asked.contiguous()), evaluate(asked))

    def _begin(self, step: int) -> None:
        """Note that `step` is evaluated, and settle once for all of its calls whether it is full."""
        memory = self.memory
        if step == memory.step:
            return
        if step < memory.step:
            memory.__init__()
        if memory.last is None:
            memory.last = torch.full((len(self.bases), self.batch), step)
            memory.full = True
        else:
            asked = self.everything(self.batch) if memory.full else self.variants[memory.step]
            memory.last.scatter_(0, torch.searchsorted(self.bases, asked.contiguous()), memory.step)
            affordable = self.left >= self.cost_of_full
            is_second = len(memory.evaluated) == 1
            memory.full = affordable and (is_second or self._enough_for_all_from(step) or self._drifting())
        memory.step = step
        memory.evaluated[step] = len(self.bases) if memory.full else 1

    def _drifting(self) -> bool:
        """Reads numbers off the device, so ask it only where they decide something."""
        drifts = self.memory.drifts
        return bool(drifts) and bool(drifts[-1] >= sum(drifts) / len(drifts))

    def _enough_for_all_from(self, step: int) -> bool:
        return self.left >= self.cost_of_full * sum(map(self.is_blend, range(step, len(self.variants))))

    def _estimate(self, track: Track, places: Tensor, predictions: Tensor) -> Tensor:
        """The estimate, and `track` brought up to date; places (n, images) in `bases`, predictions (n, rows, ...)."""
        rows = torch.arange(predictions.shape[1], device=predictions.device)
        every = torch.arange(len(self.bases))[:, None].expand(-1, places.shape[1])
        ages = self._ages(places, predictions)
        asked = (places.repeat(1, len(rows) // places.shape[1]).to(rows.device), rows.expand(len(places), -1))
        extended = track.known + track.slope * _wide(self._ages(every, predictions), track.slope)
        missed = torch.stack([predictions - track.known[asked], predictions - extended[asked]])  # (2, n, rows, ...)
        slope = missed[0] / _wide(ages, missed[0])
        track.misses = track.misses + _rms(missed / _wide(ages, missed[0]), axes=3).square().sum(1)
        self.memory.drifts.append(_rms(slope, axes=2).mean())

        extending = track.misses[1] < track.misses[0]
        foreseen = torch.where(_wide(extending, extended[0]), extended, track.known).index_put(asked, predictions)
        missed = torch.where(_wide(extending, missed[0, 0]), missed[1], missed[0])
        back = torch.where(extending, (ages - 1) * (2 * ages - 1) / (6 * ages), (ages - 1) / 2)
        track.known = track.known.index_put(asked, predictions)
        track.slope = track.slope.index_put(asked, slope)
        signed = min(self.coefficients[self.memory.step].tolist()) < 0
        coefficients = self.coefficients[self.memory.step].to(predictions.device, predictions.dtype)
        paid = (_wide(coefficients[asked[0]] * back, missed) * missed).sum(0)
        estimate = weighed(coefficients, foreseen) + paid
        if self.memory.full or signed:
            return estimate
        return torch.where(_wide(track.fresh, estimate), predictions[0], estimate)

    def _ages(self, places: Tensor, like: Tensor) -> Tensor:
        """Steps since the variants at `places` (n, images) were asked, (n, rows); rows: groups of the same images."""
        last = self.memory.last
        assert last is not None  # _begin has set it
        ages = self.memory.step - last[:, : places.shape[1]].gather(0, places)
        return ages.repeat(1, like.shape[1] // places.shape[1]).to(like.device, like.dtype)


def _rms(values: Tensor, axes: int) -> Tensor:
    """Root mean square over all but the leading axes, which are kept."""
    return values.flatten(axes).square().mean(-1).sqrt()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """`values` with trailing axes of size 1, to be multiplied with `like`."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))
