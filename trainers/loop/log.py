"""The record of a run: progress bar, log.jsonl, grids of fixed prompts and seeds, trackers, reward hacking."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN = ("reward", "valid_reward", "path_kl", "clip_fraction", "gradient_norm")


class Log:
    """log.jsonl, one line per epoch, and the progress bar; silent on all processes but the main one."""

    def __init__(self, folder: Path, epochs: int, done: int, accelerator: Accelerator):
        self.accelerator, self.path = accelerator, folder / "log.jsonl"
        self.active = accelerator.is_main_process
        if self.active:
            kept = [line for line in read_log(self.path) if line["epoch"] < done]  # a killed run may have gone further
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.bar = tqdm(
            total=epochs, initial=done, unit="epoch", disable=not self.active, mininterval=1, dynamic_ncols=True
        )

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        """One epoch's figures; those of the base, before the first, are epoch -1's."""
        clean = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps({"epoch": epoch, **clean}) + "\n")
        self.accelerator.log(dict(clean), step=epoch)
        if epoch < 0:
            return
        self.bar.set_postfix({name: f"{clean[name]:.4g}" for name in SHOWN if name in clean}, refresh=False)
        self.bar.update(1)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.active:
            self.bar.write(text)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log.jsonl; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def save_grid(images: Tensor, path: Path, columns: int = 4) -> None:
    """A PNG of images (n, 3, h, w) in [0, 1], row by row."""
    from PIL import Image

    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def hacked(trained: Sequence[Tensor], watched: Mapping[str, Sequence[Tensor]]) -> list[str]:
    """Watched rewards that fell while the trained one rose, each by two standard errors of the paired differences.

    Each pair holds the base's scores and the present ones of the same prompts and noise, (n,) each.
    """
    if _change(*trained) <= 2:
        return []
    return [name for name, pair in watched.items() if _change(*pair) < -2]


def _change(before: Tensor, after: Tensor) -> float:
    """The mean difference in standard errors."""
    difference = (after - before).double()
    error = difference.std().item() / len(difference) ** 0.5 if len(difference) > 1 else math.inf
    return difference.mean().item() / max(error, 1e-12)
