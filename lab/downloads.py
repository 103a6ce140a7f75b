"""Downloads of the catalogue's reward LoRAs: which files, how large, to where; then resumable, with progress."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..blend_core import BlendError
from ..blend_core.adapters.catalogue import Entry
from ..blend_core.adapters.files import sha256
from ..blend_core.errors import first_line

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. path: in the repository.  size: bytes, None where the server does not say it before.

    digest: its SHA-256, empty where unknown.
    """

    path: str
    size: int | None = None
    digest: str = ""

    def wrong(self, place: Path) -> str:
        """What differs at `place`, for a person to read; empty where nothing is known to."""
        size = place.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size} bytes came, expected {self.size}"
        digest = sha256(place) if self.digest else ""
        return "" if digest == self.digest else f"its SHA-256 is {digest}, expected {self.digest}"


def remote_files(entry: Entry) -> list[RemoteFile]:
    """The entry's files as its server lists them now. Raises BlendError where it cannot be reached or has none."""
    if entry.url:
        return [RemoteFile(name, digest=digest) for name, digest in entry.files.items()]
    listed = _asked(entry, "listed", partial(_repository_files, entry.repository))
    files = []
    for pattern in entry.patterns:
        known = entry.files.get(pattern, "")
        matched = [file for file in listed if fnmatch.fnmatchcase(file.path, pattern)]
        if not matched and entry.files:
            raise BlendError(
                f"{entry.name}: {entry.repository} has no file {pattern} any more, expected one. See what its "
                f"publisher says at {entry.page}."
            )
        files += [RemoteFile(file.path, file.size, known or file.digest) for file in matched]
    if not files:
        raise BlendError(f"{entry.name}: {entry.repository} has no .safetensors file, expected one. See {entry.page}.")
    return files


def missing(entry: Entry, files: list[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Those of the files that are not below `folder`, whole, already."""
    places = [(file, place_of(entry, file, folder)) for file in files]
    return [file for file, place in places if not place.is_file() or file.wrong(place)]


def place_of(entry: Entry, file: RemoteFile, folder: Path) -> Path:
    """Where a file goes: below a folder of the entry's own where its name alone would say nothing."""
    return folder / entry.folder / file.path


def download(entry: Entry, file: RemoteFile, folder: Path) -> Path:
    """The file below `folder`; a cut download goes on from there.

    Raises BlendError where the download fails, the disk is too full, or what came is not what the catalogue or the hub
    says; that file is deleted.
    """
    place = place_of(entry, file, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.parent).free
    if file.size is not None and free < file.size:
        raise BlendError(
            f"{place.name} takes {file.size / 1e6:.0f} MB, and {place.parent} has {free / 1e6:.0f} MB left. Make room, "
            "or give another folder with --to."
        )
    if place.is_file() and file.wrong(place):
        raise BlendError(
            f"{place} is there already, and is another file ({file.wrong(place)}). Move it away, or give another "
            "folder with --to."
        )
    _asked(entry, "downloaded", partial(_fetched, entry, file, place))
    if wrong := file.wrong(place):
        place.unlink()
        raise BlendError(
            f"{place.name} came otherwise than announced ({wrong}), and was deleted. Try again; where that gives the "
            f"same, its publisher has replaced the file: see {entry.page}."
        )
    return place


def _asked(entry: Entry, what: str, ask: Callable[[], Result]) -> Result:
    """What the server answers. Raises BlendError for whatever goes wrong on the way."""
    try:
        return ask()
    except Exception as error:  # many kinds: offline, no such repository, one that wants a token, disk full
        raise BlendError(
            f"{entry.name} could not be {what} ({type(error).__name__}: {first_line(error)}). Check the connection and "
            f"try again: what came is kept. Or get it by hand from {entry.page}; where that asks to accept a licence, "
            "accept it there, and log in with `hf auth login`."
        ) from error


def _repository_files(repository: str) -> list[RemoteFile]:
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repository, files_metadata=True).siblings or []
    return [RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else "") for file in siblings]


def _fetched(entry: Entry, file: RemoteFile, place: Path) -> None:
    """Download to a part next to `place`, from where it ends, and rename it when it is whole.

    hf_hub_download would begin anew: since version 1 it keeps nothing of a download that was cut off.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url, headers = (entry.url, {}) if entry.url else (hf_hub_url(entry.repository, file.path), build_hf_headers())
    part = place.with_name(place.name + ".part")
    with part.open("ab") as opened:
        if file.size is not None and opened.tell() > file.size:  # of a larger file, which its publisher has replaced
            opened.truncate(0)
        more = {"headers": headers, "expected_size": file.size, "displayed_filename": place.name}
        http_get(url, opened, resume_size=opened.tell(), **more)
    part.replace(place)
