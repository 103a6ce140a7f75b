"""Values of options that commands share, from the texts that came: prompts, reward LoRAs, device, dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..blend_core import BlendError
from . import toy


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, empty ones left out."""
    if not path.is_file():
        raise BlendError(f"{path} is no file. Give a text file with one prompt per line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BlendError(f"{path} is not UTF-8 text ({error}). Save it with that encoding.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_rewards(options: Sequence[str], base: str) -> dict[str, str]:
    """label -> file from options such as NAME=PATH; with the toy base a NAME is enough."""
    rewards = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals and base == toy.BASE:
            path = toy.MARK + name
        elif not (name and path):
            raise BlendError(
                f"--reward is {option!r}, expected NAME=PATH, such as beautiful=loras/aesthetic.safetensors."
            )
        if name in rewards:
            raise BlendError(f"two rewards are named {name}. Give one of them another name.")
        rewards[name] = path
    return rewards


def chosen_device(name: str) -> str:
    """cpu or cuda."""
    if name not in ("auto", "cpu", "cuda"):
        raise BlendError(f"--device is {name!r}, expected auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BlendError("--device is cuda, but torch finds no CUDA device. Use --device cpu.")
    return "cuda" if available and name != "cpu" else "cpu"


def dtype_of(name: str) -> torch.dtype:
    """The dtype that --dtype names."""
    if name not in ("float32", "float16", "bfloat16"):
        raise BlendError(f"--dtype is {name!r}, expected float32, float16 or bfloat16.")
    return getattr(torch, name)
