"""The policy of a distillation: one LoRA that starts as the merged blend, and the exact blend as its teacher.

Both are the same network: the teacher is the blend of predictions under the bank of the reward LoRAs, with the policy's
LoRA off, as `diffusion-blend generate` evaluates it. No second copy of the base is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...blend_core import Blend, LoRABank, read_adapter
from ...blend_core.adapters import Adapter
from ...blend_core.adapters.exporting import exported
from ...blend_core.blend import normalised
from ...blend_core.errors import BlendError
from ...blend_core.estimators import exact
from ...pipelines import blended, match
from ..settings.config import Config
from .base import Base
from .lora_policy import Encoded, LoraPolicy
from .rollout import Predict


@dataclass(frozen=True)
class Parts:
    """What a distillation is made of: the blend, and the LoRAs that it is of."""

    blend: Blend
    adapters: tuple[Adapter, ...]

    @classmethod
    def of(cls, config: Config) -> Parts:
        """Of the settings. Raises BlendError for files that are no LoRAs, and for weights that are no shares."""
        pairs = [lora.partition("=")[::2] for lora in config.distil.loras]
        names = tuple(name for name, _ in pairs)
        for _, path in pairs:
            if not Path(path).expanduser().is_file():
                raise BlendError(f"{path} is no file. Name existing LoRA files in distil.loras (--reward NAME=PATH).")
        adapters = tuple(read_adapter(Path(path).expanduser()) for _, path in pairs)
        weights = config.distil.weights or (1.0,) * len(names)
        kl_weights = tuple(adapter.kl_weight for adapter in adapters)
        return cls(Blend(names, normalised(weights), config.distil.alignment, kl_weights), adapters)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of the LoRAs, in order."""
        return self.blend.coefficients[1:]


class DistilledPolicy(LoraPolicy):
    """A TaughtPolicy (policy.py). parts: of the blend that teaches."""

    def __init__(self, base: Base, config: Config, parts: Parts):
        """Raises BlendError for LoRAs that do not fit the base, and for changes that no LoRA can start as."""
        self.parts = parts
        start = start_of(base, self.parts, config.lora.rank)
        targets = (*start, *(config.lora.targets or ()))
        super().__init__(base, replace(config, lora=replace(config.lora, targets=targets)))
        begin(self.parameters(), start)
        factors, _ = match(base.pipe, self.parts.adapters)  # again: the layers lie one name deeper now
        self.bank = LoRABank(factors).to(base.device)

    def teacher_predictor(self, encoded: Encoded) -> Predict:
        """The exact blend's guided prediction, without gradient."""
        predict = self.predictor(encoded)

        def predict_blend(x: Tensor, k: int) -> Tensor:
            plan = exact(self.parts.blend.coefficients, 1, [0] * len(x))
            with self.reference(), blended(self.unwrapped, self.bank, plan):
                return predict(x, k)

        return predict_blend


def start_of(base: Base, parts: Parts, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """module -> (down, up) of the merged blend, at most this rank: what `diffusion-blend export --rank` writes.

    Raises BlendError where a LoRA changes something by no pair of factors.
    """
    factors, _ = match(base.pipe, parts.adapters)
    tensors = exported(factors, parts.coefficients, rank).tensors
    whole = [key for key in tensors if key.endswith((".diff", ".diff_b"))]
    if whole:
        raise BlendError(
            f"{whole[0].rpartition('.')[0]}: a change came that is no pair of factors, which one LoRA cannot start as. "
            "Leave that LoRA out, or use the blend itself."
        )
    modules = [key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")]
    if not modules:
        raise BlendError("the blend changes nothing: there is nothing to distil. Raise the weights or the alignment.")
    return {module: (tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]) for module in modules}


@torch.no_grad()
def begin(parameters: Mapping[str, Tensor], start: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write the pairs into a fresh LoRA's weights. Ranks beyond the pair's stay as they are, and change nothing."""
    for module, (down, up) in start.items():
        parameters[f"{module}.lora_A.default.weight"][: len(down)] = down
        parameters[f"{module}.lora_B.default.weight"][:, : len(down)] = up
