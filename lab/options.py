"""Values of options that commands share."""

from __future__ import annotations

from pathlib import Path

import torch

from ..blend_core import BlendError


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, empty ones left out."""
    if not path.is_file():
        raise BlendError(f"{path} is no file. Give a text file with one prompt per line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BlendError(f"{path} is not UTF-8 text ({error}). Save it with that encoding.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def chosen_device(name: str) -> str:
    """cpu or cuda."""
    if name not in ("auto", "cpu", "cuda"):
        raise BlendError(f"--device is {name!r}, expected auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BlendError("--device is cuda, but torch finds no CUDA device. Use --device cpu.")
    return "cuda" if available and name != "cpu" else "cpu"
