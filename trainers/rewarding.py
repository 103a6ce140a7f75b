"""The rewards of a run: the one that is trained, rescaled as the settings say, and those that are only watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blend_core.errors import BlendError
from ..blend_core.rewards import Library, Rescaled, Reward, Scale, load_reward
from .config import Config
from .gathering import Gathering


@dataclass(frozen=True)
class OnMain:
    """A reward that the main process holds and computes for all (gathering.py). reward: None on the others."""

    reward: Reward | None
    gathering: Gathering

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of this process's images, (n,). Every process must call it at the same time."""
        return self.gathering.on_main(self.reward, images, prompts)


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

    def on_main(self, config: Config, gathering: Gathering) -> Rewards:
        """The same, computed by the main process alone."""
        trained = OnMain(self.trained, gathering) if config.reward.name else None
        return replace(self, trained=trained, watched={name: OnMain(r, gathering) for name, r in self.watched.items()})

    def facts(self) -> list[dict[str, Any]]:
        """For the file's header: name, weight in the sum, and score = scale * raw + shift."""
        return [{"name": self.name, "weight": 1.0, "scale": self.factor, "shift": self.shift}]


def open_rewards(config: Config, device: torch.device | str, *, held: bool = True) -> Rewards:
    """The rewards that the settings name. Raises BlendError for an unknown one, and for weights that are missing.

    held: off for a process that asks another one for scores; then nothing is loaded, and None stands for each reward.
    """
    label = config.reward.label or config.reward.name
    if not held:
        return Rewards(label, None, dict.fromkeys(config.reward.watch))
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
    return Rewards(label, trained, watched, factor, shift)
