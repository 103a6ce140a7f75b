"""What the nodes hand to one another. Outputs are cached and shared by ComfyUI, so everything here is immutable."""

from __future__ import annotations

from dataclasses import dataclass, replace

from comfy_api.latest import io

from ..blend_core import Adapter, Blend

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
    """A blend and the LoRAs it blends, in the order of `blend.names`."""

    blend: Blend
    loras: tuple[RewardLoRA, ...]

    @classmethod
    def of(cls, loras: tuple[RewardLoRA, ...], preference: tuple[float, ...], **settings) -> LoRABlend:
        """The blend of `loras` at `preference`; `settings` are the other fields of Blend."""
        names = _distinct([lora.label for lora in loras])
        kl_weights = tuple(lora.kl_weight for lora in loras)
        return cls(Blend(names, preference, kl_weights=kl_weights, **settings), loras)

    def aligned(self, alignment: float) -> LoRABlend:
        """The same blend at another distance from the base."""
        return replace(self, blend=self.blend.aligned(alignment))


def _distinct(labels: list[str]) -> tuple[str, ...]:
    """Labels with ` (2)`, ` (3)`... behind those that stand more than once."""
    return tuple(
        label if (before := labels[:i].count(label)) == 0 else f"{label} ({before + 1})"
        for i, label in enumerate(labels)
    )
