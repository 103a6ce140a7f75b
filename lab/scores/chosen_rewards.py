"""The rewards of a command: where they are looked for, chosen by name, weighed, loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...blend_core import BlendError
from ...blend_core.rewards import DTYPES, Card, Library, Reward, installed_rewards, load_reward, rescaled, reward_cards
from ..options import chosen_device
from .image_folder import stamp


@dataclass(frozen=True)
class ScoreSettings:
    """What scores depend on, images, prompts and weights apart; scores of other settings are made anew."""

    device: str = "cpu"
    dtype: str = "float32"
    scale: str = "none"
    version: str = __version__

    @classmethod
    def of(cls, device: str, dtype: str, scale: str) -> ScoreSettings:
        """From a command's options. Raises BlendError for a device or dtype there is not."""
        if dtype not in DTYPES:
            raise BlendError(f"--dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
        return cls(chosen_device(device), dtype, scale)

    def load(self, name: str, library: Library) -> Reward:
        """The reward of that name."""
        return load_reward(name, library, self.device, DTYPES[self.dtype], self.scale)


@dataclass(frozen=True)
class Chosen:
    """A reward of the run. name: what load_reward takes.  label: what tables call it.  model: where it is loaded.

    sources: name, bytes and time of the files that make it; None where they are unknown (then nothing is reused).
    """

    name: str
    label: str
    weight: float | None
    card: Card
    model: Reward | None = None
    sources: list | None = None

    def opened(self, library: Library, device: str) -> Reward:
        """The reward, loaded in float32 where it is not yet."""
        return self.model or load_reward(self.name, library, device)


def library_of(folders: Sequence[Path], download: bool = False) -> Library:
    """Where weights lie; without folders in those of the ComfyUIs found here."""
    homes = [*filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)), "~/comfy/ComfyUI"]
    usual = [Path(home).expanduser() / "models" / "reward_models" for home in homes]
    existing = folders or [folder for folder in usual if folder.is_dir()]
    return Library(tuple(existing) or (Path("reward_models"),), download)


def card_of(name: str, library: Library, settings: ScoreSettings) -> tuple[Card, Reward | None]:
    """A reward's card, and the reward itself where it has to be loaded to know the card: those of the user's own."""
    cards = reward_cards()
    if name in cards:
        return rescaled(Reward(cards[name]), settings.scale).card, None
    reward = settings.load(name, library)
    return reward.card, reward


def chosen_rewards(options: Sequence[str], library: Library, settings: ScoreSettings) -> list[Chosen]:
    """The rewards of options such as NAME or NAME=WEIGHT, those with weights not loaded yet.

    Raises BlendError for unknown names, names that come twice, and weights that are no numbers or not for all.
    """
    if not options:
        names = ", ".join([*reward_cards(), *installed_rewards(), *library.own_rewards()])
        raise BlendError(f"no reward came. Give --reward NAME, or NAME=WEIGHT, once or more. Rewards: {names}.")
    rewards = []
    for option in options:
        name, equals, weight = option.rpartition("=") if not option.endswith(".py") else (option, "", "")
        name = name if equals else option
        place = name if Path(name).exists() else str(library.own_rewards().get(name, name))
        weight = _weight(option, weight) if equals else None
        card, model = card_of(place, library, settings)
        rewards.append(Chosen(place, card.name, weight, card, model))
    labels = [reward.label for reward in rewards]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise BlendError(f"the reward {twice} came twice. Name each once; two files of one name: rename one.")
    weighed = [reward.label for reward in rewards if reward.weight is not None]
    if 0 < len(weighed) < len(rewards):
        others = ", ".join(label for label in labels if label not in weighed)
        raise BlendError(
            f"{', '.join(weighed)} came with a weight, {others} without. Give NAME=WEIGHT for all or none."
        )
    return rewards


def _weight(option: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise BlendError(f"the reward is {option!r}: {text!r} is no weight. Write NAME=WEIGHT, such as pickscore=0.5.")
    return weight


def sources_of(reward: Chosen, library: Library) -> list | None:
    """Name, bytes and time of the files that make the reward; None for code from elsewhere, which may have changed."""
    if reward.model is None:
        files = library.find(reward.name, reward.card.files)
    elif ".py" in reward.name:
        files = [Path(reward.name[: reward.name.rindex(".py") + 3]).expanduser()]
    else:
        return None
    return [[file.name, *stamp(file)] for file in files]
