"""The rewards of a run: the one that is trained, rescaled as the settings say, and those that are only watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blend_core.errors import BlendError
from ..blend_core.rewards import Library, Rescaled, Reward, RewardScale, WeightedSum, load_reward, rescaled
from .distributed import Gathering
from .places import reward_label
from .settings.config import Config, RewardChoice


@dataclass(frozen=True)
class OnMain:
    """A reward that the main process holds and computes for all (distributed.py). reward: None on the others."""

    reward: Reward | None
    gathering: Gathering

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of this process's images, (n,). Every process must call it at the same time."""
        return self.gathering.on_main(self.reward, images, prompts)


@dataclass(frozen=True)
class Term:
    """A reward in the sum that is trained. name: what the file calls it.  scale: of its score, from the raw one."""

    name: str
    reward: Reward
    scale: RewardScale = field(default_factory=RewardScale)
    weight: float = 1.0


@dataclass(frozen=True)
class Rewards:
    """trained: None for dpo without a reward to watch.  watched: by name.  terms: what trained is the sum of."""

    name: str
    trained: Reward | None
    watched: dict[str, Reward] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()

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
        trained = OnMain(self.trained, gathering) if config.reward.terms else None
        return replace(self, trained=trained, watched={name: OnMain(r, gathering) for name, r in self.watched.items()})

    def facts(self) -> list[dict[str, Any]]:
        """For the file's header: of each reward its name, its weight in the sum, and score = scale * raw + shift."""
        return [
            {"name": term.name, "weight": term.weight, "scale": term.scale.factor, "shift": term.scale.shift}
            for term in self.terms
        ]


def open_rewards(
    config: Config, device: torch.device | str, *, held: bool = True, load: Callable[[str], Term] | None = None
) -> Rewards:
    """The rewards that the settings name. Raises BlendError for an unknown one, and for weights that are missing.

    held: off for a process that asks another one for scores; then nothing is loaded, and None stands for each reward.
    load: how one is opened by its name, instead of from the library.  Watched rewards keep their own scale.
    """
    choice = config.reward
    if not held:
        names = [reward_label(name) for _, name in choice.terms]
        return Rewards(_label(config, names), None, dict.fromkeys(map(reward_label, choice.watch)))
    load = load or _from_library(config, device)
    terms = tuple(_scaled(load(name), weight, choice) for weight, name in choice.terms)
    watched = {term.name: term.reward for term in map(load, choice.watch)}
    return Rewards(_label(config, [term.name for term in terms]), _sum(terms), watched, terms)


def _from_library(config: Config, device: torch.device | str) -> Callable[[str], Term]:
    folders = {"folders": tuple(Path(folder).expanduser() for folder in config.reward.weights)}
    library = Library(**folders if config.reward.weights else {}, download=config.reward.download)
    return lambda name: Term(reward_label(name), load_reward(name, library, device))


def _scaled(term: Term, weight: float, choice: RewardChoice) -> Term:
    """The term under the settings' scale preset and factor, as one of weight `weight`."""
    reward = rescaled(term.reward, choice.scale)
    preset = RewardScale() if reward is term.reward else reward.scale
    scale = RewardScale(
        choice.factor * preset.factor * term.scale.factor,
        choice.factor * (preset.factor * term.scale.shift + preset.shift),
    )
    reward = reward if choice.factor == 1 else Rescaled(reward, RewardScale(choice.factor))
    return replace(term, reward=reward, scale=scale, weight=weight)


def _sum(terms: Sequence[Term]) -> Reward | None:
    if not terms:
        return None
    if [term.weight for term in terms] == [1.0]:
        return terms[0].reward
    return WeightedSum([term.reward for term in terms], [term.weight for term in terms])


def _label(config: Config, names: Sequence[str]) -> str:
    """What logs and files call the reward that is trained."""
    if config.reward.label or not config.reward.sum:
        return config.reward.label or "".join(names)
    return " + ".join(f"{weight:g} {name}" for (weight, _), name in zip(config.reward.terms, names, strict=True))
