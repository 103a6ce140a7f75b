"""Aesthetic predictor v2.5: an affine head on SigLIP. The head is AGPL-3.0: the user brings it, nothing is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..contract import Card, Reward
from ..files import RewardFile, read_state_dict
from .clip import activation_bytes, affine, folded, unit
from .networks import filled, square, starting
from .preprocessing import HALF, normalised, squashed

if TYPE_CHECKING:
    from transformers import SiglipVisionConfig, SiglipVisionModel

TOWER = "vision_model."
HEAD = RewardFile(
    "discus0434/aesthetic-predictor-v2-5",
    "aesthetic_predictor_v2_5.pth",
    "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/aesthetic_predictor_v2_5.pth",
    by_hand=True,
)


def so400m() -> SiglipVisionConfig:
    """SigLIP so400m/14 at 384 pixels."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )


class SiglipAesthetic(Reward):
    """An affine head on SigLIP's pooled embedding at unit length; no prompt."""

    def __init__(self, card: Card, network: SiglipVisionModel, head: nn.Linear):
        super().__init__(card)
        self.network, self.head, self.size = network, head, square(network.config.image_size)
        self.activation_bytes = activation_bytes(network.config)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        pixels = normalised(squashed(images, self.size), HALF, HALF).to(next(self.network.parameters()).dtype)
        return affine(self.head, unit(self.network(pixel_values=pixels)))


def build(card: Card, paths: Sequence[Path]) -> Reward:
    """Files: SigLIP, the head."""
    from transformers import SiglipVisionModel

    state = starting(read_state_dict(paths[0]), (TOWER,))
    head = {name: value for name, value in read_state_dict(paths[1]).items() if name.startswith("scoring_head.")}
    return SiglipAesthetic(card, filled(SiglipVisionModel, so400m(), state, TOWER), folded(head, so400m().hidden_size))


CARD = Card(
    "aesthetic_v2.5",
    "beauty, drawings too, 1 to 10 (aesthetic predictor v2.5)",
    (1.0, 10.0),
    licence="AGPL-3.0 head, Apache-2.0 SigLIP",
    files=(RewardFile("google/siglip-so400m-patch14-384", "model.safetensors"), HEAD),
)
REWARDS = ((CARD, build),)
