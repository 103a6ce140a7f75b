"""Rewards on other scales, and sums of rewards: the one place where a weighted reward is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import BlendError
from .contract import Card, Reward


@dataclass(frozen=True)
class RewardScale:
    """factor * score + shift. A shift changes no optimum; a factor does: it divides the KL weight."""

    factor: float = 1.0
    shift: float = 0.0


SCALES: Mapping[str, Mapping[str, RewardScale]] = {
    "none": {},
    "diffusion-blend": {"vila": RewardScale(4, -2), "pickscore": RewardScale(1, -19)},  # arXiv 2505.18547's code
    "flow-grpo": {
        "pickscore": RewardScale(1 / 26),
        "jpeg_compressibility": RewardScale(1 / 500),
        "jpeg_incompressibility": RewardScale(1 / 500),
    },
}
"""Named presets: the scale of each reward that a paper rescales; the others stay as they are."""


class Rescaled(Reward):
    """A reward under a scale."""

    def __init__(self, reward: Reward, scale: RewardScale):
        ends = reward.card.usual_range
        moved = ends and tuple(sorted(scale.factor * end + scale.shift for end in ends))
        super().__init__(replace(reward.card, usual_range=moved))
        self.reward, self.scale = reward, scale
        self.activation_bytes = reward.activation_bytes

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        return self.scale.factor * self.reward.score(images, prompts) + self.scale.shift


def rescaled(reward: Reward, preset: str) -> Reward:
    """The reward on the scale that a preset of SCALES gives it. Raises BlendError for an unknown preset."""
    if preset not in SCALES:
        raise BlendError(f"the scale {preset!r} is unknown. Choose one of {', '.join(SCALES)}.")
    scale = SCALES[preset].get(reward.card.name)
    return reward if scale is None else Rescaled(reward, scale)


class WeightedSum(Reward):
    """sum_i weights[i] * rewards[i], the weights as they are: they need not sum to 1, and may be negative."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]):
        checked = check_weights(weights, len(rewards))
        super().__init__(_sum_of([reward.card for reward in rewards], checked))
        self.rewards, self.weights = cast(Sequence[Reward], nn.ModuleList(rewards)), checked
        self.activation_bytes = max(reward.activation_bytes for reward in rewards)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        return weighted([reward.score(images, prompts) for reward in self.rewards], self.weights)


def weighted(scores: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i weights[i] * scores[i], (batch,). Raises BlendError unless there is one finite weight per score."""
    parts = (weight * score for weight, score in zip(check_weights(weights, len(scores)), scores, strict=True))
    return sum(parts, torch.zeros(()))


def check_weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """The weights as floats. Raises BlendError unless there are `count` of them, at least one, all finite."""
    weights = tuple(float(weight) for weight in weights)
    if count == 0 or len(weights) != count or not all(map(math.isfinite, weights)):
        raise BlendError(
            f"{len(weights)} weights ({', '.join(f'{weight:g}' for weight in weights)}) came for {count} rewards. Give "
            "one finite number per reward, in their order."
        )
    return weights


def _sum_of(cards: Sequence[Card], weights: Sequence[float]) -> Card:
    stated = [(w, *card.usual_range) for w, card in zip(weights, cards, strict=True) if card.usual_range is not None]
    lows, highs = zip(*(sorted((w * low, w * high)) for w, low, high in stated), strict=True) if stated else ((), ())
    return Card(
        " + ".join(f"{weight:g} {card.name}" for weight, card in zip(weights, cards, strict=True)),
        "a weighted sum",
        (sum(lows), sum(highs)) if len(stated) == len(cards) else None,
        all(card.differentiable for card in cards),
        any(card.reads_prompt for card in cards),
        "; ".join(dict.fromkeys(card.licence for card in cards)),
        tuple(dict.fromkeys(file for card in cards for file in card.files)),
        tuple(dict.fromkeys(package for card in cards for package in card.packages)),
    )
