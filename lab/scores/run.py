"""Scoring the images of a folder: prompts found, rewards applied one after another, scores written as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...blend_core import BlendError
from ...blend_core.rewards import Library, weighted
from ..files import write, write_json
from ..tables import as_csv
from .chosen_rewards import Chosen, ScoreSettings, chosen_rewards, sources_of
from .image_folder import Item, batches, find_items, listed
from .image_prompts import given_prompts

RECORD, TABLE, FORMAT = "scores.json", "scores.csv", 1
SAVE_EVERY = 30.0  # seconds


def run(
    folder: Path,
    options: Sequence[str],
    library: Library,
    settings: ScoreSettings,
    out: Path,
    prompts: str | Path | None = None,
    recursive: bool = False,
    batch_size: int = 8,
) -> tuple[list[Item], list[Chosen]]:
    """Score the images of a folder; scores.json and scores.csv are written into `out`, also where the run stops early.

    options: NAME or NAME=WEIGHT.  prompts: one text for all, or a file; default: what the images say themselves.
    Raises BlendError for input that cannot be used, before a model with weights is loaded.
    """
    rewards = chosen_rewards(options, library, settings)
    items = find_items(folder, recursive)
    former = _former(out, rewards)
    _add_prompts(items, prompts, [reward.label for reward in rewards if reward.card.reads_prompt])
    rewards = [replace(reward, sources=sources_of(reward, library)) for reward in rewards]
    _reuse(former, items, rewards, settings)
    saved = time.monotonic()
    try:
        for reward in rewards:  # one after another: only one of the models has to fit into memory
            for _ in _score(reward, items, library, settings, batch_size):
                if time.monotonic() - saved > SAVE_EVERY:
                    _save(out, items, rewards, settings)
                    saved = time.monotonic()
    finally:
        if any(item.scores for item in items):
            _save(out, items, rewards, settings)
    return items, rewards


def total_scores(items: Sequence[Item], rewards: Sequence[Chosen]) -> dict[str, float]:
    """file -> weighted score of the images that have all their scores; empty for a run without weights."""
    done = [item for item in items if all(reward.label in item.scores for reward in rewards)]
    weights = [reward.weight for reward in rewards]
    if None in weights or not done:
        return {}
    columns = [torch.tensor([item.scores[reward.label] for item in done], dtype=torch.float64) for reward in rewards]
    return dict(zip((item.file for item in done), weighted(columns, weights).tolist(), strict=True))


def statistics(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean, its standard error (None for one value) and count."""
    scores = torch.tensor(list(values), dtype=torch.float64)
    error = (scores.std() / len(scores) ** 0.5).item() if len(scores) > 1 else None
    return {"mean": scores.mean().item() if len(scores) else None, "standard_error": error, "count": len(scores)}


def _add_prompts(items: Sequence[Item], prompts: str | Path | None, readers: Sequence[str]) -> None:
    """Set the prompts given. Raises BlendError for images without one, where there are rewards that read it."""
    if prompts is not None:
        files = [item.file for item in items]
        by_file = given_prompts(prompts, files) if isinstance(prompts, Path) else dict.fromkeys(files, prompts)
        for item in items:
            item.prompt = by_file.get(item.file)
    without = [item.file for item in items if not (item.prompt or "").strip()]
    verb = "reads" if len(readers) == 1 else "read"
    if readers and without:
        raise BlendError(
            f"{', '.join(readers)} {verb} the prompt, and {len(without)} of {len(items)}"
            f" images have none, or several that differ: {listed(without)}. Give --prompt TEXT for all, or --prompts "
            "FILE: a .txt with a line per image, a .json {file: prompt}, or a .csv with the columns file and prompt."
        )


def _score(
    reward: Chosen, items: Sequence[Item], library: Library, settings: ScoreSettings, batch_size: int
) -> Iterator[None]:
    """Score the images that lack this reward; yields after each batch."""
    missing = [item for item in items if reward.label not in item.scores]
    if not missing:
        return
    model = reward.model or settings.load(reward.name, library)
    model.one_per_image([item.prompt or "" for item in missing], len(missing))  # all, before the first is scored
    with tqdm(total=len(missing), desc=reward.label, unit="image") as progress:
        for batch, pixels in batches(missing, batch_size):
            try:
                with torch.no_grad():
                    scores = model(pixels, [item.prompt or "" for item in batch])
            except BlendError as error:
                raise BlendError(f"{listed([item.file for item in batch])}: {error}") from error
            for item, score in zip(batch, scores.tolist(), strict=True):
                item.scores[reward.label] = score
            progress.update(len(batch))
            yield


def _former(out: Path, rewards: Sequence[Chosen]) -> dict:
    """The scores that `out` holds. Raises BlendError where they are not ours, or would be lost."""
    file = out / RECORD
    if not file.exists() and not (out / TABLE).exists():
        return {}
    try:
        former = json.loads(file.read_text(encoding="utf8"))
        lost = former["rewards"].keys() - {reward.label for reward in rewards}
        {image["file"]: (image["stamp"], image["prompt"], image["scores"].keys()) for image in former["images"]}
        if former["format"] != FORMAT:
            raise ValueError(f"format {former['format']}, expected {FORMAT}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BlendError(
            f"{out} holds a {RECORD} or {TABLE} that is not of this program ({type(error).__name__}: {error}). Choose "
            "another --out, or move it away."
        ) from error
    if lost:
        raise BlendError(
            f"{file} holds scores of {', '.join(sorted(lost))} too, which this run would drop. Add --reward for them, "
            "choose another --out, or delete the file."
        )
    return former


def _reuse(former: dict, items: Sequence[Item], rewards: Sequence[Chosen], settings: ScoreSettings) -> None:
    """Take over the scores of images, prompts and rewards that have not changed."""
    if former.get("settings") != asdict(settings):
        return
    entries = {entry["file"]: entry for entry in former["images"]}
    for reward in rewards:
        known = former["rewards"].get(reward.label, {}).get("sources")
        if known is None or known != reward.sources:
            continue
        for item in items:
            entry = entries.get(item.file, {"scores": {}})
            same = entry.get("stamp") == item.stamp and (not reward.card.reads_prompt or entry["prompt"] == item.prompt)
            if same and reward.label in entry["scores"]:
                item.scores[reward.label] = entry["scores"][reward.label]


def _save(out: Path, items: Sequence[Item], rewards: Sequence[Chosen], settings: ScoreSettings) -> None:
    """Write scores.json and scores.csv, images in the order of their names; scores not made yet are left out."""
    total = total_scores(items, rewards)
    record = {
        "format": FORMAT,
        "settings": asdict(settings),
        "rewards": {reward.label: _described(reward, items) for reward in rewards},
        "weighted": statistics(total.values()) if total else None,
        "images": [
            {
                "file": item.file,
                "prompt": item.prompt,
                "scores": item.scores,
                "weighted": total.get(item.file),
                "stamp": item.stamp,
            }
            for item in items
        ],
    }
    labels = [reward.label for reward in rewards]
    rows = [["file", "prompt", *labels, *(["weighted"] if total else [])]]
    for item in items:
        scores = [item.scores.get(label) for label in labels] + ([total.get(item.file)] if total else [])
        rows.append([item.file, item.prompt or "", *("" if score is None else f"{score:.7g}" for score in scores)])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record, errors="replace")
    write(out / TABLE, as_csv(rows).encode("utf8", "replace"))


def _described(reward: Chosen, items: Sequence[Item]) -> dict:
    """What scores.json says of a reward: its card, weight and mean."""
    card = asdict(reward.card) | {"files": [file.page for file in reward.card.files]}
    scores = [item.scores[reward.label] for item in items if reward.label in item.scores]
    return card | {"weight": reward.weight, "sources": reward.sources} | statistics(scores)
