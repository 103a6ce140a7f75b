"""Which of two networks a LoRA was trained for, where a model has one for high noise and one for low (Wan 2.2).

Nothing in the factors tells: names and headers do. Both files fit both networks, and the wrong one runs in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .factors import Adapter

HIGH, LOW = "high noise", "low noise"
_SECOND = "transformer_2"  # diffusers' name of the network for low noise; the first is `transformer`
_NOISE = re.compile(r"(?<![a-z])(high|low)[-_. ]?noise", re.IGNORECASE)
_WORD = re.compile(r"(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)
_LONGEST = 300  # characters of a header's text that may be a name


def expert_of(path: Path, metadata: Mapping[str, str], wan: bool) -> tuple[str, str]:
    """(HIGH or LOW, what says so); two empty texts where nothing does.

    wan: whether the file is of a family with two networks, where "high" alone in a name is enough.
    """
    names = [path.stem, *(parent.name for parent in path.absolute().parents[:2])]
    for name in names:
        if match := _NOISE.search(name) or (wan and _WORD.search(name)):
            return _expert(match[1]), f"its name {name!r}"
    if path.parent.name == _SECOND or (path.parent.name == "transformer" and (path.parent.parent / _SECOND).is_dir()):
        return LOW if path.parent.name == _SECOND else HIGH, f"its folder {path.parent.name!r}"
    for key, text in metadata.items():
        if len(text) <= _LONGEST and (match := _NOISE.search(text)):
            return _expert(match[1]), f"its header ({key})"
    return "", ""


def note(expert: str, why: str) -> str:
    """For the load report of one file."""
    other = LOW if expert == HIGH else HIGH
    return (
        f"made for the network of {expert} (Wan 2.2), by {why}; it fits that of {other} too, and gives another picture "
        "there"
    )


def mixed_experts(adapters: Iterable[Adapter]) -> str:
    """A warning where the files of one blend are for two networks; empty where they are not."""
    labels: dict[str, list[str]] = {}
    for adapter in adapters:
        if adapter.expert:
            labels.setdefault(adapter.expert, []).append(adapter.label)
    if len(labels) < 2:
        return ""
    parts = "; ".join(f"{', '.join(names)} for {expert}" for expert, names in labels.items())
    return (
        f"these LoRAs are for two networks of one model ({parts}): blend each on its own, in two samplers that share "
        "the steps"
    )


def _expert(word: str) -> str:
    return HIGH if word.lower() == "high" else LOW
