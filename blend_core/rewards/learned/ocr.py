"""Text in images: how much of what the prompt quotes can be read. The package rapidocr ships PP-OCR's weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from numpy import ndarray
from torch import Tensor

from ...errors import BlendError, first_line
from ..contract import Card, Reward

QUOTED = re.compile('["“”](.*?)["“”]', re.DOTALL)


class ReadText(Reward):
    """1 - d / n: d the edit distance of the text read in the image to the prompt's quoted text, n characters long.

    d is 0 where the quoted text is part of the text read, and n at most. Case and spaces do not count. This is the text
    reward of Flow-GRPO (arXiv 2505.05470), which reads by earlier networks of PP-OCR, those of PaddleOCR 2.9.
    """

    def __init__(self, card: Card, read: Callable[[ndarray], str]):
        """read: the text in an image (height, width, 3) of bytes, blue first."""
        super().__init__(card)
        self.read = read

    def one_per_image(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        """As any reward's; raises BlendError for a prompt that quotes no text too."""
        prompts = super().one_per_image(prompts, count)
        for prompt in dict.fromkeys(prompts):
            quoted_text(prompt)
        return prompts

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,) in [0, 1]; no gradient."""
        pixels = (images.detach().flip(1).clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
        scores = [
            readable_share(self.read(image), quoted_text(prompt))
            for image, prompt in zip(pixels.contiguous().numpy(), prompts, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)


def quoted_text(prompt: str) -> str:
    """The first text between double quotes. Raises BlendError where there is none."""
    match = QUOTED.search(prompt)
    if match is None or not _plain(match[1]):
        raise BlendError(
            f"ocr looks for the text that the prompt puts between double quotes, and {prompt!r} quotes none. Write it "
            'as in: a shop sign that says "OPEN". Or choose a reward that compares the whole prompt, such as clipscore.'
        )
    return match[1]


def readable_share(read: str, quoted: str) -> float:
    """1 - d / n as in ReadText."""
    read, quoted = _plain(read), _plain(quoted)
    distance = 0 if quoted in read else edit_distance(read, quoted)
    return 1 - min(distance, len(quoted)) / len(quoted)


def edit_distance(first: str, second: str) -> int:
    """The fewest characters to insert, delete or replace between two texts (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def build(card: Card, paths: Sequence[Path]) -> Reward:
    """No files: the package brings its weights. Runs on the CPU, with as many threads as torch."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:  # the package is there, a library below it is not
        raise BlendError(
            f"rapidocr cannot be imported ({first_line(error)}). Mend its installation, or choose another reward."
        ) from error
    engine = RapidOCR(
        params={
            "Global.log_level": "error",  # it warns of every image without text
            "Global.use_cls": False,  # no text on its head, as in Flow-GRPO
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )
    return ReadText(card, lambda image: "".join(getattr(engine(image), "txts", None) or ()))  # None: no text in it


CARD = Card(
    "ocr",
    "share of the prompt's quoted text that can be read",
    (0.0, 1.0),
    differentiable=False,
    reads_prompt=True,
    licence="Apache-2.0 (PP-OCR)",
    packages=("rapidocr", "onnxruntime"),
)
REWARDS = ((CARD, build),)
