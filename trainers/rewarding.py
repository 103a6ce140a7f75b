"""The rewards of a run: the one that is trained, rescaled as the settings say, and those that are only watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..blend_core.errors import BlendError
from ..blend_core.rewards import Library, Rescaled, Reward, Scale, load_reward
from .config import Config


@dataclass(frozen=True)
class Rewards:
    """trained: None for dpo without a reward to watch.  watched: by name.  factor, shift: what the file states."""

    name: str
    trained: Reward | None
    watched: dict[str, Reward] = field(default_factory=dict)
    factor: float = 1.0
    shift: float = 0.0

    @property
    def all(self) -> dict[str, Reward]:
        """The trained one first."""
        return ({self.name: self.trained} if self.trained is not None else {}) | self.watched

    def check(self, config: Config) -> None:
        """Raise BlendError where the algorithm needs gradients that the reward has not."""
        if config.algorithm == "draft" and not self.trained.card.differentiable:
            raise BlendError(
                f"the reward {self.name} has no gradient, which draft climbs. Choose dpok or grpo, or a differentiable "
                "reward."
            )

    def facts(self) -> list[dict[str, Any]]:
        """For the file's header: name, weight in the sum, and score = scale * raw + shift."""
        return [{"name": self.name, "weight": 1.0, "scale": self.factor, "shift": self.shift}]


def open_rewards(config: Config, device: torch.device | str) -> Rewards:
    """The rewards that the settings name. Raises BlendError for an unknown one, and for weights that are missing."""
    folders = {"folders": tuple(Path(folder).expanduser() for folder in config.reward.weights)}
    library = Library(**folders if config.reward.weights else {}, download=config.reward.download)
    name, factor, shift, trained = config.reward.name, config.reward.factor, 0.0, None
    if name:
        trained = load_reward(name, library, device, scale=config.reward.scale)
        if isinstance(trained, Rescaled):  # a preset's scale
            factor, shift = factor * trained.scale.factor, config.reward.factor * trained.scale.shift
        if config.reward.factor != 1:
            trained = Rescaled(trained, Scale(config.reward.factor))
    watched = {other: load_reward(other, library, device) for other in config.reward.watch}
    return Rewards(config.reward.label or name, trained, watched, factor, shift)
