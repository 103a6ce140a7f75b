"""What the nodes hand to one another. Outputs are cached and shared by ComfyUI, so everything here is immutable."""

from __future__ import annotations

from dataclasses import dataclass, replace

from comfy_api.latest import io
from torch import Tensor

from ..blend_core import Adapter, Blend, Schedule

RewardLoRASocket = io.Custom("REWARD_LORA")
BlendSocket = io.Custom("BLEND")
RewardModelSocket = io.Custom("REWARD_MODEL")

CATEGORY = "Diffusion Blend"


@dataclass(frozen=True)
class RewardLoRA:
    """One basis as loaded: its adapter, the name it carries in the graph, and the KL weight it was trained with."""

    label: str
    adapter: Adapter
    kl_weight: float | None = None
    allow_partial: bool = False


@dataclass(frozen=True)
class LoRABlend:
    """A blend, or a schedule of blends, and the LoRAs it blends in the order of its names."""

    schedule: Schedule
    loras: tuple[RewardLoRA, ...]

    @classmethod
    def of(cls, loras: tuple[RewardLoRA, ...], preference: tuple[float, ...], **settings) -> LoRABlend:
        """The blend of `loras` at `preference`; `settings` are the other fields of Blend."""
        names = _distinct([lora.label for lora in loras])
        kl_weights = tuple(lora.kl_weight for lora in loras)
        return cls(Schedule.even([Blend(names, preference, kl_weights=kl_weights, **settings)]), loras)

    @property
    def names(self) -> tuple[str, ...]:
        """What the bases are called."""
        return self.schedule.blends[0].names

    def coefficients(self, steps: int) -> Tensor:
        """(steps, 1 + m), base first."""
        return self.schedule.coefficients(steps)

    def aligned(self, alignment: float) -> LoRABlend:
        """The same blend at another distance from the base."""
        return replace(self, schedule=self.schedule.aligned(alignment))

    def over(self, loras: tuple[RewardLoRA, ...]) -> LoRABlend:
        """The same blend expressed over more LoRAs, the new ones at weight 0. `loras` holds all of its own."""
        place = {id(lora): i for i, lora in enumerate(self.loras)}
        blends = []
        for blend in self.schedule.blends:
            preference = [blend.preference[place[id(lora)]] if id(lora) in place else 0.0 for lora in loras]
            blends.append(
                replace(
                    blend,
                    names=_distinct([lora.label for lora in loras]),
                    preference=tuple(preference),
                    kl_weights=tuple(lora.kl_weight for lora in loras),
                )
            )
        return LoRABlend(replace(self.schedule, blends=tuple(blends)), loras)


def _distinct(labels: list[str]) -> tuple[str, ...]:
    """Labels with ` (2)`, ` (3)`... behind those that stand more than once."""
    return tuple(
        label if (before := labels[:i].count(label)) == 0 else f"{label} ({before + 1})"
        for i, label in enumerate(labels)
    )
