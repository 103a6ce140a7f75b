"""What the nodes hand to one another. Outputs are cached and shared by ComfyUI, so everything here is immutable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import torch
from comfy_api.latest import io
from torch import Tensor

from ..blend_core import Blend, Schedule
from ..blend_core.adapters import Adapter
from ..blend_core.adapters.catalogue import Recognition
from ..blend_core.blend import shares
from ..blend_core.windows import Window

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

RewardLoRASocket = io.Custom("REWARD_LORA")
BlendSocket = io.Custom("BLEND")
LoRAStackSocket = io.Custom("LORA_STACK")  # as other packs name it
RewardModelSocket = io.Custom("REWARD_MODEL")

KEY = "diffusion_blend"  # what is ours in the dictionaries of a MODEL


@dataclass(frozen=True)
class RewardLoRA:
    """One basis as loaded: its adapter, the name it carries in the graph, and the KL weight it was trained with.

    strength: what multiplied the scale of its file, with the words for who said so.
    recognition: the published LoRA that the file is; None where it is none of the catalogue.
    """

    label: str
    adapter: Adapter
    kl_weight: float | None = None
    allow_partial: bool = False
    strength: tuple[float, str] = (1.0, "")
    recognition: Recognition | None = None

    def times(self, strength: float, source: str) -> RewardLoRA:
        """The same LoRA at another strength; see Adapter.times."""
        return replace(self, adapter=self.adapter.times(strength, source), strength=(strength, source))

    @property
    def eta(self) -> float | None:
        """How ancestral the sampler of its training was; None where the file does not say."""
        return self.adapter.eta

    @property
    def reward_factor(self) -> float:
        """What the reward was multiplied by in training."""
        return self.adapter.reward_factor


@dataclass(frozen=True)
class WholeModel:
    """A basis that is a model of its own: a full fine-tune, or a model with ComfyUI's own LoRAs in it."""

    label: str
    model: ModelPatcher
    kl_weight: float | None = None

    eta: ClassVar[None] = None  # no file states them
    reward_factor: ClassVar[float] = 1.0


Basis = RewardLoRA | WholeModel
Timeline = Schedule | Window


@dataclass(frozen=True)
class LoRABlend:
    """A blend, or blends that change over the run, and the bases it blends in the order of its names.

    regions: (mask, schedule) pairs, each painted over what lies below it; masks are (1 or images, height, width).
    """

    schedule: Timeline
    bases: tuple[Basis, ...]
    regions: tuple[tuple[Tensor, Timeline], ...] = ()

    @classmethod
    def of(cls, bases: tuple[Basis, ...], preference: tuple[float, ...], **settings) -> LoRABlend:
        """The blend of `bases` at `preference`; `settings` are the other fields of Blend."""
        names = _distinct([basis.label for basis in bases])
        kl_weights = tuple(basis.kl_weight for basis in bases)
        return cls(Schedule.even([Blend(names, preference, kl_weights=kl_weights, **settings)]), bases)

    @property
    def names(self) -> tuple[str, ...]:
        """What the bases are called."""
        return self.schedule.blends[0].names

    def coefficients(self, steps: int) -> list[Tensor]:
        """Coefficients (steps, 1 + m), base first: below the regions, and in each of them."""
        return [self.schedule.coefficients(steps), *(schedule.coefficients(steps) for _, schedule in self.regions)]

    def evaluated(self, steps: int) -> int:
        """How many variants `steps` steps evaluate exactly, in all."""
        return int(self._used(steps).sum())

    def batched(self, steps: int) -> int:
        """The most that may share a pass in one of `steps` steps: all that it evaluates but the whole models."""
        shared = [0, *(i for i, basis in enumerate(self.bases, start=1) if isinstance(basis, RewardLoRA))]
        return int(self._used(steps)[:, shared].sum(1).max())

    def _used(self, steps: int) -> Tensor:
        """(steps, 1 + m) bool: which variants have a coefficient in some layer."""
        return (torch.stack(self.coefficients(steps)) != 0).any(0)

    @property
    def counting(self) -> tuple[bool, ...]:
        """Of each basis, whether it has a coefficient at some time or place."""
        schedules = (self.schedule, *(schedule for _, schedule in self.regions))
        tables = [blend.coefficients[1:] for schedule in schedules for blend in schedule.blends]
        return tuple(any(of_basis) for of_basis in zip(*tables, strict=True))

    def aligned(self, alignment: float) -> LoRABlend:
        """The same blend at another distance from the base."""
        return self._mapped(lambda schedule: schedule.aligned(alignment))

    def cut(self, until: float) -> LoRABlend:
        """The same blend up to the share `until` of the run, and the base model alone after it."""
        return self._mapped(lambda schedule: schedule.cut(until))

    def preferring(self, preference: tuple[float, ...]) -> LoRABlend:
        """The same at another preference, in every keyframe and region."""
        return self._mapped(lambda schedule: schedule.mapped(lambda blend: replace(blend, preference=preference)))

    def replaced(self, place: int, basis: Basis) -> LoRABlend:
        """The same with another basis at a place, from 0, under the name that stands there."""
        bases = (*self.bases[:place], basis, *self.bases[place + 1 :])
        kl_weights = tuple(one.kl_weight for one in bases)
        blend = self._mapped(lambda schedule: schedule.mapped(lambda blend: replace(blend, kl_weights=kl_weights)))
        return replace(blend, bases=bases)

    def over(self, bases: tuple[Basis, ...]) -> LoRABlend:
        """The same blend expressed over more bases, the new ones at weight 0. `bases` holds all of its own."""
        names, kl_weights = _distinct([basis.label for basis in bases]), tuple(basis.kl_weight for basis in bases)

        def widened(blend: Blend) -> Blend:
            weighted = list(zip(blend.preference, self.bases, strict=True))  # one basis may stand in it twice
            weights = [math.fsum(weight for weight, present in weighted if present is basis) for basis in bases]
            size = math.fsum(map(abs, weights))  # 0 where weights of one basis cancel one another
            preference = shares(weights if size else [1.0] * len(weights))
            alignment = blend.alignment * size
            return replace(blend, names=names, preference=preference, alignment=alignment, kl_weights=kl_weights)

        blend = self._mapped(lambda schedule: schedule.mapped(widened))
        return replace(blend, bases=bases)

    def _mapped(self, change: Callable[[Timeline], Timeline]) -> LoRABlend:
        regions = tuple((mask, change(schedule)) for mask, schedule in self.regions)
        return replace(self, schedule=change(self.schedule), regions=regions)

    def strengths(self) -> list[str]:
        """A line for every LoRA whose scale is another one than its file's."""
        return [
            f"{name}: its scale times {basis.strength[0]:g} ({basis.strength[1]})"
            for name, basis in zip(self.names, self.bases, strict=True)
            if isinstance(basis, RewardLoRA) and basis.strength[0] != 1
        ]

    def describe(self) -> str:
        """The formula below the regions, and one line per region; every coefficient where there is one blend only."""
        return self.formula() if self.regions else self.schedule.describe()

    def formula(self, steps: int = 0) -> str:
        """The formula below the regions, and one line per region. steps: of the run; 0 where they are not known."""
        lines = [f"region {i}: {schedule.formula(steps)}" for i, (_, schedule) in enumerate(self.regions, start=1)]
        below = self.schedule.formula(steps)
        return "\n".join([f"elsewhere: {below}", *lines]) if lines else below


def blend_of(blend: LoRABlend | Basis) -> LoRABlend:
    """The blend that came in; of a single reward LoRA, that LoRA as trained."""
    return blend if isinstance(blend, LoRABlend) else LoRABlend.of((blend,), (1.0,))


def joined(*blends: LoRABlend) -> tuple[LoRABlend, ...]:
    """The blends, each expressed over the bases of all of them."""
    bases = tuple({id(basis): basis for blend in blends for basis in blend.bases}.values())
    return tuple(blend.over(bases) for blend in blends)


def _distinct(labels: list[str]) -> tuple[str, ...]:
    """Labels with ` (2)`, ` (3)`... behind those that stand more than once; a number that is a label's own is left out.
    """
    names, unavailable = [], set(labels)
    for i, label in enumerate(labels):
        repeated = label in labels[:i]
        numbered = (f"{label} ({number})" for number in count(2))
        names.append(next(name for name in numbered if name not in unavailable) if repeated else label)
        unavailable.add(names[-1])
    return tuple(names)
