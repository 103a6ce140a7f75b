"""Scores sorted into buckets by thresholds, and kept in the metadata of the images that were scored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..blend import parse_numbers
from ..errors import BlendError

KEY = "diffusion_blend_scores"
"""Under which an image's metadata holds scores, as JSON: {"format": 1, "images": {image_key: StoredScores}}."""
FORMAT = 1
BUCKETS = ("great", "ok", "bad")


@dataclass(frozen=True)
class Thresholds:
    """Weighted scores from which an image is ok and from which it is great; below both it is bad."""

    ok: float
    great: float

    @classmethod
    def of(cls, text: str) -> Thresholds | None:
        """From one number, which is both, or two, the lower one first; None from empty text.

        Raises BlendError for all else.
        """
        numbers = list(parse_numbers(text, "thresholds", "threshold", "20, 22"))
        if not numbers:
            return None
        if len(numbers) > 2 or not all(map(math.isfinite, numbers)) or numbers[0] > numbers[-1]:
            raise BlendError(
                f"good_at is {text!r}, expected one finite number, the score from which an image is good, or two, the "
                "lower one first: ok from the first, great from the second, such as 20, 22. Decimals take a point. "
                "Leave it empty for no thresholds."
            )
        return cls(numbers[0], numbers[-1])

    def bucket(self, score: float) -> str:
        """One of BUCKETS."""
        return "great" if score >= self.great else "ok" if score >= self.ok else "bad"


@dataclass(frozen=True)
class StoredScores:
    """What the metadata says of an image. scores: by reward.  bucket: None where there were no thresholds."""

    scores: Mapping[str, float]
    weighted: float
    bucket: str | None = None

    @property
    def finite(self) -> bool:
        """Whether every score is a finite number."""
        return all(map(math.isfinite, (self.weighted, *self.scores.values())))


def store_scores(metadata: dict, images: Sequence[StoredScores], keys: Sequence[str]) -> None:
    """Put scores into a host's metadata, next to those that it holds. keys: the image_key of each of the images.

    Scores that are no finite numbers are left out: JSON has no name for them, and an editor could not read it.
    """
    former = metadata.get(KEY)
    entries = former["images"] if isinstance(former, dict) and former.get("format") == FORMAT else {}
    metadata[KEY] = {
        "format": FORMAT,
        "images": entries | {key: asdict(image) for key, image in zip(keys, images, strict=True) if image.finite},
    }


def stored_scores(text: str, key: str) -> StoredScores | None:
    """The scores of the image of that key in metadata's JSON; None without, and where the text is another program's."""
    try:
        metadata = json.loads(text)
        if metadata["format"] != FORMAT or key not in metadata["images"]:
            return None
        entry = metadata["images"][key]
        scores = {str(name): float(score) for name, score in entry["scores"].items()}
        bucket = entry["bucket"] if entry["bucket"] in BUCKETS else None
        image = StoredScores(scores, float(entry["weighted"]), bucket)
        return image if image.finite else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as bytes, fractions cut off, as ComfyUI's Save Image writes them."""
    return (255.0 * images).clamp(0, 255).to("cpu", torch.uint8)


def image_key(pixels: Tensor) -> str:
    """What the bytes (height, width, 3) of an image are known by: the same for the image that is read from its PNG."""
    shape = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(shape + pixels.contiguous().numpy().tobytes()).hexdigest()[:32]


def stored_entries(
    names: list[str], scores: list[Tensor], total: Tensor, buckets: Sequence[str | None]
) -> list[StoredScores]:
    """What the metadata is to say of each image, in the order they came; a name that comes again is numbered."""
    labels = [f"{name} ({seen + 1})" if (seen := names[:i].count(name)) else name for i, name in enumerate(names)]
    columns = dict(zip(labels, (column.tolist() for column in scores), strict=True))
    return [
        StoredScores({name: column[i] for name, column in columns.items()}, score, buckets[i])
        for i, score in enumerate(total.tolist())
    ]
