"""The images of a folder: what can be scored is found, checked, and read a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, islice
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...blend_core import BlendError
from ...blend_core.rewards import KEY, StoredScores, image_key, stored_scores
from .image_prompts import recorded_prompts, stored_prompt

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr")


@dataclass
class Item:
    """An image. file: its path below the folder.  stamp: its bytes and time.  scores: by label, those that are done."""

    path: Path
    file: str
    stamp: list[int]
    prompt: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


def find_items(folder: Path, recursive: bool) -> list[Item]:
    """The folder's images, sorted by name, with the prompts they bring.

    Raises BlendError for a folder without any, and with the names of those that cannot be scored.
    """
    if not folder.is_dir():
        raise BlendError(f"{folder} is no folder. Give the folder that holds the images.")
    entries = folder.rglob("*") if recursive else folder.iterdir()
    paths = {path.relative_to(folder).as_posix(): path for path in entries if _is_image(path)}
    if not paths:
        deeper = "" if recursive else " Add --recursive for those in its subfolders."
        raise BlendError(f"{folder} holds no images ({', '.join(ENDINGS)}).{deeper}")
    items, refused = [], {}
    recorded = cache(recorded_prompts)
    for file, path in sorted(paths.items()):
        try:
            with _opened(path) as image:
                prompt = stored_prompt(image) or recorded(path.parent).get(path.name)
            items.append(Item(path, file, stamp(path), prompt))
        except BlendError as error:
            refused.setdefault(str(error), []).append(file)
    if refused:
        raise BlendError(" ".join(f"{listed(files)}: {reason}" for reason, files in refused.items()))
    return items


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def stamp(path: Path) -> list[int]:
    """A file's bytes and time of change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, not yet decoded. Raises BlendError, without its name, where reward models cannot see it as it is."""
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise BlendError(f"of the mode {image.mode}, expected 8 bits per channel. Convert to 8-bit RGB.")
            if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                raise BlendError("animated. Score its frames as single images.")
            if _is_translucent(image):
                raise BlendError("transparent in places. Put the images on a background first, and save as RGB.")
            yield image
    except BlendError:
        raise
    except Exception as error:  # Pillow's are of many kinds; all mean the same to a user
        raise BlendError("cannot be read: no image, or damaged. Take such files out of the folder.") from error


def _is_translucent(image: Image.Image) -> bool:
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    return has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def listed(files: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def batches(items: Sequence[Item], size: int) -> Iterator[tuple[list[Item], Tensor]]:
    """Neighbours of one size, at most `size` of them, and their pixels (batch, 3, height, width) in [0, 1]."""
    read = ((item, _pixels(item)) for item in items)
    for _, group in groupby(read, lambda pair: pair[1].shape):
        while batch := list(islice(group, size)):
            yield [item for item, _ in batch], torch.stack([pixels for _, pixels in batch])


def _pixels(item: Item) -> Tensor:
    """(3, height, width) in [0, 1], upright."""
    with _named(item) as image:
        pixels = numpy.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_stored_scores(item: Item) -> StoredScores | None:
    """The scores that an image's metadata holds of its pixels; None without, and where the image was changed since."""
    with _named(item) as image:
        text = image.info.get(KEY)
        pixels = numpy.array(image.convert("RGB")) if isinstance(text, str) else None
    return None if pixels is None else stored_scores(text, image_key(torch.from_numpy(pixels)))


@contextmanager
def _named(item: Item) -> Iterator[Image.Image]:
    """As _opened; messages name the image."""
    try:
        with _opened(item.path) as image:
            yield image
    except BlendError as error:
        raise BlendError(f"{item.file}: {error}") from error
