"""Scores that the node Reward Scorer has left in the metadata of images, read without scoring anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...blend_core import BlendError
from ...blend_core.rewards import StoredScores
from ..files import write
from ..tables import as_csv
from .image_folder import Item, find_items, listed, read_stored_scores

TABLE = "stored_scores.csv"

Scored = Sequence[tuple[Item, StoredScores]]


def read(folder: Path, recursive: bool) -> tuple[Scored, list[str]]:
    """The folder's images that hold scores of their pixels, and the names of those that do not.

    Raises BlendError where no image does, and as find_items.
    """
    items = [(item, read_stored_scores(item)) for item in find_items(folder, recursive)]
    images = [(item, stored) for item, stored in items if stored is not None]
    without = [item.file for item, stored in items if stored is None]
    if not images:
        raise BlendError(
            f"no image holds scores of its pixels: {listed(without)}. Save images that come out of Reward Scorer or "
            "Pick Best with Save Image, as PNG and in the run that scores them; or score these anew with --reward."
        )
    return images, without


def columns_of(images: Scored) -> dict[str, dict[str, float]]:
    """file -> score of each reward that any of the images has, then the weighted score."""
    names = dict.fromkeys(name for _, stored in images for name in stored.scores)
    columns = {
        name: {item.file: stored.scores[name] for item, stored in images if name in stored.scores} for name in names
    }
    return columns | {"weighted": {item.file: stored.weighted for item, stored in images}}


def write_table(out: Path, images: Scored, columns: dict[str, dict[str, float]]) -> None:
    """Write stored_scores.csv into `out`; a score that an image lacks is left empty."""
    rows = [["file", "prompt", *columns, "bucket"]]
    for item, stored in images:
        scores = [f"{column[item.file]:.7g}" if item.file in column else "" for column in columns.values()]
        rows.append([item.file, item.prompt or "", *scores, stored.bucket or ""])
    out.mkdir(parents=True, exist_ok=True)
    write(out / TABLE, as_csv(rows).encode("utf8", "replace"))
