"""Checkpoints: written next to their place, flushed to the disk, then renamed; a failed save leaves the last one.

Draws come from names, not from running generators (seeding.py), so a checkpoint is weights, optimiser, running figures
and the number of epochs done: a resumed run goes on exactly.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...blend_core.errors import BlendError
from ..places import HIDDEN
from ..settings.config import Config
from ..settings.fields import stated_settings, to_flat

KEPT = 2
NAME = "epoch-{:06d}"
FREE_TO_CHANGE = ("output.", "reward.place")  # settings that do not change what is learnt


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write folder/epoch-N and remove all but the last ones. Raises BlendError where the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    place, passing = folder / NAME.format(epoch), folder / f".{NAME.format(epoch)}.part"
    shutil.rmtree(passing, ignore_errors=True)
    try:
        passing.mkdir()
        with (passing / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            shutil.rmtree(place)
        passing.rename(place)
        _flush(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its writer
        shutil.rmtree(passing, ignore_errors=True)
        raise _failed(folder, place, error) from error
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def _flush(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(folder: Path, place: Path, error: Exception) -> BlendError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else str(error).split("\n")[0]
    kept = checkpoints(folder)
    left = f"{kept[-1].name} is whole, and the same command goes on from it" if kept else "none was saved before it"
    return BlendError(f"the checkpoint {place} could not be saved: {reason}; {left}. Free some space first.")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    return sorted(folder.glob("epoch-" + "[0-9]" * 6)) if folder.is_dir() else []


def load_checkpoint(folder: Path, config: Config, device: torch.device) -> dict[str, Any] | None:
    """The latest state of a folder, or None. Raises BlendError where it belongs to another configuration."""
    files = checkpoints(folder)
    if not files:
        return None
    file = files[-1] / "state.pt"
    place = "cpu" if device.type == "cpu" else device  # accelerate's is "cpu:0" in a group, which torch.load refuses
    try:
        state = torch.load(file, map_location=place, weights_only=True)
    except Exception as error:
        raise BlendError(
            f"{file} cannot be read ({str(error).splitlines()[0]}). Remove "
            f"{files[-1].name} to go on from the one before."
        ) from error
    check_same(config, state["config"], files[-1])
    return state


def check_same(config: Config, saved: dict[str, Any], place: Path) -> None:
    """Raise BlendError where a checkpoint was made with other settings."""
    mine = plain(config)
    other = {
        key
        for key in mine.keys() | saved.keys()
        if not key.startswith(FREE_TO_CHANGE) and mine.get(key) != saved.get(key)
    }
    if config.optimisation.decay == "constant" and config.epochs >= saved.get("epochs", 0):
        other.discard("epochs")  # a longer run
    if other:
        listed = "; ".join(f"{key} was {saved.get(key)!r}, is {mine.get(key)!r}" for key in sorted(other)[:5])
        raise BlendError(
            f"{place} was made with other settings ({listed}). Give the same settings to go on with it, or another "
            "output.folder for a new run."
        )


def plain(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint holds them: numbers, texts and lists; paths relative to output.folder.

    Where a path is cut down to its last part, a digest of it follows, which tells two places of one name apart.
    """
    full = to_flat(config)
    flat = to_flat(stated_settings(config, Path(config.output.folder)))
    flat = {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}
    return {key: _told_apart(value, full[key]) if HIDDEN in str(value) else value for key, value in flat.items()}


def _told_apart(stated: Any, full: Any) -> Any:
    digest = hashlib.sha256(repr(full).encode()).hexdigest()[:12]
    return [*stated, digest] if isinstance(stated, list) else f"{stated} {digest}"


def checkpoint_bytes(config: Config) -> int:
    """A generous guess before the network is known: LoRA, its best copy and two moments, three checkpoints of them."""
    return config.lora.rank * 256 * 4096 * 4 * 4 * 3


def check_space(folder: Path, needed: int) -> None:
    """Raise BlendError unless the folder can be written and its disk holds the checkpoints of a run. needed: bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: every process of a run looks at once
            pass
    except OSError as error:
        raise BlendError(f"output.folder {folder} cannot be written ({error.strerror}). Choose another.") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BlendError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free, and the run's checkpoints need about "
            f"{needed / 1e6:.0f} MB. Free some space, or set output.folder to another disk."
        )
