"""Preference pairs from a folder: pairs.jsonl with lines of {"prompt", "better", "worse"}, images by their paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...blend_core.errors import BlendError
from ..model.policy import ImagePolicy


class PairSet:
    """The pairs of a folder; images are read when they are needed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        file = self.folder / "pairs.jsonl"
        if not file.is_file():
            raise BlendError(f"{file} does not exist. Give a folder with pairs.jsonl: lines of prompt, better, worse.")
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise BlendError(f"{file} is empty. Write one JSON object per line: prompt, better, worse.")
        self.pairs = [self._read(line, number) for number, line in enumerate(lines, 1)]

    def __len__(self) -> int:
        return len(self.pairs)

    def prompt(self, item: int) -> str:
        """The prompt of one pair."""
        return self.pairs[item]["prompt"]

    @property
    def prompts(self) -> list[str]:
        """Of all pairs."""
        return [pair["prompt"] for pair in self.pairs]

    def latents(self, policy: ImagePolicy, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clean latents of the better and of the worse images, (n, ...) each."""
        return tuple(policy.encode_images(self._images(items, side, policy)) for side in ("better", "worse"))

    def _images(self, items: Sequence[int], side: str, policy: ImagePolicy) -> Tensor:
        """(n, 3, h, w) in [0, 1], at the policy's size."""
        import numpy as np
        from PIL import Image

        size = policy.image_size
        images = []
        for item in items:
            with Image.open(self.folder / self.pairs[item][side]) as image:
                fitted = image.convert("RGB")
                if fitted.size != (size, size):
                    edge = min(fitted.size)
                    left, top = (fitted.width - edge) // 2, (fitted.height - edge) // 2
                    fitted = fitted.crop((left, top, left + edge, top + edge)).resize((size, size), Image.LANCZOS)
            images.append(torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255)
        return torch.stack(images)

    def _read(self, line: str, number: int) -> dict[str, str]:
        where = f"line {number} of {self.folder / 'pairs.jsonl'}"
        try:
            pair = {name: str(json.loads(line)[name]) for name in ("prompt", "better", "worse")}
        except (ValueError, KeyError, TypeError) as error:
            raise BlendError(f"{where} is {line[:60]!r}, expected a JSON object with prompt, better, worse.") from error
        missing = [pair[side] for side in ("better", "worse") if not (self.folder / pair[side]).is_file()]
        if missing:
            raise BlendError(f"{where} names {missing[0]}, which does not exist. Paths start at the folder.")
        return pair
