"""Opening a weight file. A LoRA may lie in several: shards (`...-00001-of-00002`) are opened together, as one."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ...errors import BlendError
from .containers import WeightFile, open_pickle, open_safetensors
from .places import SAFETENSORS, all_shards, one_file

MOST_KEYS, LONGEST_KEY = 65_536, 512  # a LoRA of the largest model has some 20,000; names are below 150


def open_weights(path: str | os.PathLike) -> WeightFile:
    """The weight file at `path`, with the other shards of it; a folder may stand for the only one below it.

    Raises BlendError if unreadable.
    """
    with _readable(path):
        first, *others = all_shards(one_file(Path(path).expanduser()))
        opened = _joined([_opened(first), *map(_opened, others)]) if others else _opened(first)
    _refuse_endless(opened.path, opened.keys)
    return opened


def _opened(path: Path) -> WeightFile:
    if path.stat().st_size == 0:
        raise BlendError(f"{path} is empty (0 bytes), expected a LoRA file. Download or save it again.")
    _refuse_text(path)
    opened = open_safetensors(path) if path.suffix.lower() in SAFETENSORS else open_pickle(path)
    if not opened.keys:
        raise BlendError(f"{path} holds no tensors, expected LoRA factors. Save or download it again.")
    return opened


@contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """Raise BlendError for what the system says of a path: no permission, no such name, a broken disk."""
    try:
        yield
    except BlendError:
        raise
    except (OSError, ValueError) as error:  # the latter for names with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise BlendError(
            f"{str(path)[:300]} cannot be read ({reason}). Check its permissions and its name, or copy it elsewhere."
        ) from error


def _joined(shards: Sequence[WeightFile]) -> WeightFile:
    """The shards as one file under the name of the first. Raises BlendError for a key in two of them."""
    place = {}
    for shard in shards:
        for key in shard.keys:
            if key in place:
                raise BlendError(
                    f"{shard.path.name} and {place[key].path.name} both hold {key!r}, expected it in one of them. The "
                    "files are not of one LoRA, or one is there twice: download them again."
                )
            place[key] = shard

    def read(wanted: Iterable[str]) -> dict[str, Tensor]:
        wanted = list(wanted)
        by_shard = {shard.path: shard.read([key for key in wanted if place[key] is shard]) for shard in shards}
        return {key: by_shard[place[key].path][key] for key in wanted}

    return WeightFile(shards[0].path, tuple(place), shards[0].metadata, read, shards[0].lora_config)


def sha256(path: str | os.PathLike) -> str:
    """The file's SHA-256, in hexadecimal; read again only where the file changed."""
    facts = os.stat(path)
    return _sha256(os.fspath(path), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=256)
def _sha256(path: str, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _refuse_text(path: Path) -> None:
    """What a failed download leaves behind, under the name of a weight file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise BlendError(f"{path.name} is a Git LFS pointer, expected the weights. Run `git lfs pull`, or download it.")
    # Whole tags only: the header length a safetensors file begins with may well spell a lone "<".
    if start.lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise BlendError(f"{path.name} is a web page, expected the weights. Download it again through its direct link.")


def _refuse_endless(path: Path, keys: Iterable[str]) -> None:
    """Names that no trainer writes, and that would take minutes to read."""
    keys = tuple(keys)
    longest = max(keys, key=len)
    if len(keys) > MOST_KEYS or len(longest) > LONGEST_KEY:
        raise BlendError(
            f"{path.name} holds {len(keys)} keys of up to {len(longest)} characters (the longest begins with "
            f"{longest[:60]!r}), expected at most {MOST_KEYS} of {LONGEST_KEY}. It is no LoRA: choose another file."
        )
