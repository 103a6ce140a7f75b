"""Which of two networks a LoRA was trained for, where a model has one for high noise and one for low (Wan 2.2).

Nothing in the factors tells: names and headers do. Both files fit both networks, and the wrong one runs in silence.
Of a pair of files the names are equal but for the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ..errors import BlendError
from .adapter import Adapter

HIGH, LOW = "high noise", "low noise"
AS_CHOSEN = "as chosen"
EXPERTS = (AS_CHOSEN, HIGH, LOW)
_SECOND = "transformer_2"  # diffusers' name of the network for low noise; the first is `transformer`
_NOISE = re.compile(r"(?<![a-z])(high|low)[-_. ]?noise", re.IGNORECASE)
_WORD = re.compile(r"(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)
_EITHER = re.compile(r"(?<![a-z])(high|low)(?=[-_. ]?noise|(?![a-z]))", re.IGNORECASE)
_FOLDER = re.compile(r"(?<=/)transformer(_2)?(?=/[^/]*$)")
_LOOSE = re.compile(r"[-_. *]|noise")
_LONGEST = 300  # characters of a header's text that may be a name


def expert_of(path: Path, metadata: Mapping[str, str], wan: bool) -> tuple[str, str]:
    """(HIGH or LOW, what says so); two empty texts where nothing does.

    wan: whether the file is of a family with two networks, where "high" alone in a name is enough.
    """
    for name in [path.stem, *(parent.name for parent in path.absolute().parents[:2])]:
        if expert := _said(name, wan):
            return expert, f"its name {name!r}"
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


def partner(name: str, expert: str, names: Iterable[str]) -> str:
    """`name`, or the one of `names` that is the same file for the network of `expert`.

    name, names: of files, with their folders below models/loras. Raises BlendError for an expert that is none, and
    unless one file is the partner.
    """
    if expert not in EXPERTS:
        raise BlendError(f"expert is {expert!r}, expected one of {', '.join(EXPERTS)}. Choose one of these.")
    if expert in (AS_CHOSEN, _named(name)):
        return name
    others = [other for other in names if other != name and _named(other) == expert]
    for key in (_blank, lambda text: _LOOSE.sub("", _blank(text))):
        partners = [other for other in others if key(other) == key(name)]
        if len(partners) > 1:
            raise BlendError(
                f"{name} has {len(partners)} partners for {expert} ({', '.join(partners[:4])}), expected one. Choose "
                f"the file itself in lora_name, and set expert to {AS_CHOSEN}."
            )
        if partners:
            return partners[0]
    raise BlendError(
        f"{name} has no partner for {expert} in models/loras, expected {_expected(name, expert)}. Put it there and "
        f"press R, or choose the file itself in lora_name and set expert to {AS_CHOSEN}."
    )


def _expected(name: str, expert: str) -> str:
    """What the partner of a file would be called."""
    word = expert.split()[0]
    swapped = _EITHER.sub(lambda match: _cased(word, match[1]), name)
    return swapped if swapped != name else f"a file of that name with {expert.replace(' ', '_')} in it"


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word


def _blank(name: str) -> str:
    """A name without what tells the two networks apart."""
    return _EITHER.sub("*", _FOLDER.sub("*", f"/{name}".replace("\\", "/"))).lower()


def _named(name: str) -> str:
    """The network that the name of a file of such a pair says; empty where it says none."""
    path = PurePosixPath(name.replace("\\", "/"))
    said = next(filter(None, (_said(part, wan=True) for part in (path.stem, *(p.name for p in path.parents)))), "")
    return said or {_SECOND: LOW, "transformer": HIGH}.get(path.parent.name, "")


def _said(name: str, wan: bool) -> str:
    match = _NOISE.search(name) or (wan and _WORD.search(name))
    return _expert(match[1]) if match else ""


def _expert(word: str) -> str:
    return HIGH if word.lower() == "high" else LOW
