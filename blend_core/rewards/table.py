"""The rewards by name. Libraries load only when a reward is built."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch

from ..errors import BlendError
from .combined import rescaled
from .contract import Card, Reward
from .custom import Custom, is_custom, load_custom
from .files import Library
from .image import FORMULAS, Formula
from .learned import blip, clip, ocr, owl, siglip

ENTRY_POINTS = "diffusion_blend.rewards"
DTYPES = MappingProxyType({"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16})
NO_VILA = (
    "vila has no PyTorch weights: Google published it for TensorFlow alone. Choose aesthetic or aesthetic_v2.5 for "
    "beauty without a prompt, or pickscore, hpsv2.1 or imagereward for people's preference."
)

log = logging.getLogger(__name__)

_LEARNED: Mapping[str, tuple[Card, Callable[[Card, Sequence[Path]], Reward]]] = {
    card.name: (card, build) for module in (ocr, clip, blip, siglip, owl) for card, build in module.REWARDS
}


def reward_cards() -> dict[str, Card]:
    """The cards of all rewards by name, those that look for no files first."""
    formulas = {name: card for name, (_, card) in FORMULAS.items()}
    return formulas | {name: card for name, (card, _) in _LEARNED.items()}


def installed_rewards() -> list[str]:
    """Names of rewards that other Python packages offer, through entry points of the group diffusion_blend.rewards."""
    return sorted(entry_points(group=ENTRY_POINTS).names)


def needed_files(card: Card, library: Library) -> list[Path]:
    """Paths of the card's files. Raises BlendError for packages that are not installed, and as Library.find."""
    missing = [package for package in card.packages if find_spec(package) is None]
    if missing:
        raise BlendError(
            f"{card.name} needs {' and '.join(missing)}, which this Python does not have. Install with: "
            f'"{sys.executable}" -m pip install {" ".join(missing)}. Then start anew.'
        )
    return library.find(card.name, card.files)


def load_reward(
    name: str,
    library: Library | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    scale: str = "none",
) -> Reward:
    """A reward by its name, ready to score.

    name: one of `reward_cards()` or `installed_rewards()`, or a place: file.py, file.py:function, module:function.
    library: where weights are looked for (default: the hub's cache alone).  scale: a preset of SCALES.
    Raises BlendError for an unknown name (it suggests the nearest), for packages or weights that are missing, and for
    weights that do not fit.
    """
    return rescaled(_loaded(name, library or Library()).to(device, dtype), scale)


def _loaded(name: str, library: Library) -> Reward:
    if name in FORMULAS:
        function, card = FORMULAS[name]
        return Formula(card, function)
    if name in _LEARNED:
        card, build = _LEARNED[name]
        return build(card, needed_files(card, library))
    if name in installed_rewards():
        return Custom(name, next(iter(entry_points(group=ENTRY_POINTS, name=name))).load())
    if is_custom(name):
        return load_custom(name)
    if name.startswith("vila"):
        raise BlendError(NO_VILA)
    known = [*reward_cards(), *installed_rewards()]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise BlendError(f"the reward {name!r} is unknown. {meant}Known rewards: {', '.join(known)}.")
