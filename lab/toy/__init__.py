"""The toy studio: a small model with its data, rewards and reward LoRAs, and the demo made with it.

Its short names: `toy` is the base model, `toy:NAME` a LoRA or a reward.
"""

from __future__ import annotations

from pathlib import Path

STUDIO = Path(__file__).parent / "studio"
BASE, MARK = "toy", "toy:"


def place(path: str) -> str:
    """A path, with the studio's short names spelled out; records keep the short ones, so that they travel."""
    if path == BASE:
        return str(STUDIO / "base")
    return str(STUDIO / "loras" / f"{path.removeprefix(MARK)}.safetensors") if path.startswith(MARK) else path
