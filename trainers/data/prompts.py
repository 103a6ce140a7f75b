"""Prompt sets, and which image of an epoch is made from which prompt on which process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...blend_core.errors import BlendError
from ..seeding import stream
from ..settings.config import Config


@dataclass(frozen=True)
class Chunk:
    """Images that go through the network together.

    numbers: the images' numbers within the run, which name their noise.  groups: number of each image's prompt within
    the epoch.  items: index of each image's prompt (dpo: pair) in the set.
    """

    numbers: tuple[int, ...]
    groups: tuple[int, ...]
    items: tuple[int, ...]


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a text file (one per line) or a .jsonl file (field `prompt`); empty lines are left out."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise BlendError(f"the prompts file {path} does not exist. Give a text file with one prompt per line.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, path, number) for number, line in enumerate(lines, 1)]
    if not lines:
        raise BlendError(f"the prompts file {path} is empty. Write one prompt per line.")
    return lines


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        return str(json.loads(line)["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise BlendError(
            f"line {number} of {path} has no prompt: {line[:60]!r}. Expected a JSON object with the field prompt."
        ) from error


def prompts_sha256(prompts: Sequence[str]) -> str:
    """What the file's header says of the prompts, in hexadecimal."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def shuffled(seed: int, first: int, count: int, total: int) -> list[int]:
    """Items `first` to `first + count` of an endless sequence of shuffles of range(total): each comes once a round."""
    orders = {}
    picked = []
    for position in range(first, first + count):
        turn, place = divmod(position, total)
        if turn not in orders:
            orders[turn] = torch.randperm(total, generator=stream(seed, "prompts", turn)).tolist()
        picked.append(orders[turn][place])
    return picked


def held_out(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(a share to train on, a tenth that is not trained on, 32 at most), by a shuffle that no seed changes.

    Raises BlendError for fewer than two different prompts.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        raise BlendError(
            f"prompts.file has {len(different)} prompt, expected two at least: one is held out to measure the distance "
            "on. Add prompts, or name others in prompts.validation_file."
        )
    order = shuffled(0, 0, len(different), len(different))
    count = min(max(len(different) // 10, 1), 32)
    return [different[item] for item in sorted(order[count:])], [different[item] for item in order[:count]]


def epoch_chunks(config: Config, epoch: int, total: int, process: int = 0, processes: int = 1) -> list[list[Chunk]]:
    """This process's chunks of each minibatch of an epoch; total: size of the prompt (or pair) set.

    The epoch's images, their prompts, noise and minibatches follow from the seed; processes only share them out, in
    whole chunks, so that a chunk holds the same images whoever computes it.
    """
    per_prompt = 1 if config.algorithm == "dpo" else config.images_per_prompt
    items = shuffled(config.seed, epoch * config.prompts_per_epoch, config.prompts_per_epoch, total)
    images = config.images_per_epoch
    order = torch.randperm(images, generator=stream(config.seed, "minibatches", epoch)).tolist()
    size = config.optimisation.images_per_pass
    minibatches = []
    for start in range(0, images, config.images_per_update):
        update = order[start : start + config.images_per_update]
        chunks = [update[i : i + size] for i in range(0, len(update), size)]
        minibatches.append(
            [
                Chunk(
                    tuple(epoch * images + image for image in chunk),
                    tuple(image // per_prompt for image in chunk),
                    tuple(items[image // per_prompt] for image in chunk),
                )
                for chunk in chunks[process::processes]
            ]
        )
    return minibatches
