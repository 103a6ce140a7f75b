"""Reward LoRAs that people can download: catalogue.json, and which of its entries a file is.

Adding an entry is adding lines to catalogue.json: the fields of Entry, the unknown ones left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import BlendError
from .files import label_of, says_nothing, sha256

FILE = Path(__file__).with_name("catalogue.json")
_ANY = "*"  # in the name of a file: whatever stands there


@dataclass(frozen=True)
class Entry:
    """One published reward LoRA. What its publisher does not state is None or empty.

    name: for `diffusion-blend fetch`.  label: of the reward, on nodes.
    kl_weight: the factor of the KL term in training; 0 for a training without one.
    eta, guidance: of the sampler in training.
    repository: its id on the hub, owner/name; else url, the address of its only file.
    files: path in the repository -> SHA-256, empty where unknown. A path may hold *. No files: every .safetensors file
    and adapter_config.json of the repository.
    also: other names (without ending) under which the same LoRA is passed on.
    """

    name: str
    label: str
    base: str
    reward: str = ""
    rank: int | None = None
    alpha: float | None = None
    kl_weight: float | None = None
    eta: float | None = None
    guidance: float | None = None
    licence: str = ""
    repository: str = ""
    url: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    note: str = ""

    @property
    def page(self) -> str:
        """Where a person reads about it and gets it."""
        return self.url or f"https://huggingface.co/{self.repository}"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Its files' paths in the repository, with * for whatever stands there."""
        return tuple(self.files) or ("*.safetensors", "*adapter_config.json")

    @property
    def folder(self) -> str:
        """The folder that its files need of their own: the repository's name where theirs say nothing, else none."""
        telling = self.files and all("/" in name or not says_nothing(Path(name).stem) for name in self.files)
        return "" if telling else self.repository.rpartition("/")[2]

    @property
    def names(self) -> frozenset[str]:
        """The labels that read_adapter gives its files, in lower case."""
        paths = (Path(self.folder or ".", name.replace(_ANY, "model")) for name in self.patterns)
        labels = (label_of(path) for path in paths if path.suffix != ".json")
        return frozenset(name.lower() for name in (*labels, *self.also))


@dataclass(frozen=True)
class Recognition:
    """The entry that a file is, and by what: "hash" or "name"."""

    entry: Entry
    by: str

    def __str__(self) -> str:
        free = "trained without a KL term" if self.entry.kl_weight == 0 else ""
        facts = ", ".join(filter(None, (self.entry.base, self.entry.reward, free)))
        return f"in the catalogue: {self.entry.name} ({facts}), by its {self.by}"


@cache
def catalogue() -> Mapping[str, Entry]:
    """All entries by name."""
    return read_catalogue(FILE)


def read_catalogue(path: str | os.PathLike) -> dict[str, Entry]:
    """The entries of a file by name. Raises BlendError that names the entry which cannot be read."""
    entries: dict[str, Entry] = {}
    for values in json.loads(Path(path).read_text(encoding="utf-8")):
        name = values.get("name", values)
        try:
            entry = Entry(**values | {"also": tuple(values.get("also", ()))})
        except TypeError as error:
            raise BlendError(f"{path}: {name}: {error}. Expected the fields of Entry in catalogue.py.") from error
        if entry.name in entries:
            raise BlendError(f"{path}: {name} stands there twice. Give one of the two another name.")
        if bool(entry.repository) == bool(entry.url):
            raise BlendError(f"{path}: {name} needs either a repository or an url, to say where its files are.")
        entries[entry.name] = entry
    return entries


def recognised(path: str | os.PathLike) -> Recognition | None:
    """The entry that the LoRA at `path` is, by its name (or its folder's) or its SHA-256; None where it is none.

    A name counts only where the catalogue knows no hash of that entry's file, since others may use that name too.
    """
    path = Path(path)
    named = [entry for entry in catalogue().values() if label_of(path).lower() in entry.names]
    for entry in named:
        if not any(entry.files.values()):
            return Recognition(entry, "name")
    by_digest = {digest: entry for entry in catalogue().values() for digest in entry.files.values() if digest}
    entry = by_digest.get(sha256(path))
    return Recognition(entry, "hash") if entry else None
