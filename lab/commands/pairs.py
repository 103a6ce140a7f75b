"""`diffusion-blend pairs`: preference pairs for dpo, from the base model's samples and a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Assignments


def command(
    preset: Annotated[list[str], typer.Argument(help="Presets or TOML files, as for train.")],
    out: Annotated[Path, typer.Option(help="Folder for the images and pairs.jsonl.")],
    set: Assignments = None,
    count: Annotated[int, typer.Option(help="Pairs.", min=1)] = 256,
    candidates: Annotated[int, typer.Option(help="Samples per prompt; the best and the worst are kept.", min=2)] = 4,
) -> None:
    """Sample the base model and let a reward say which images are better; train with algorithm=dpo on the result."""
    from ...trainers.settings.config import read_config
    from ..toy.training import resolved

    config, rewards = resolved(read_config(preset, set or []))
    from ...trainers.data.pairing import make_pairs
    from ...trainers.rewards import open_rewards

    print(make_pairs(config, rewards or open_rewards(config, "cpu"), out, count, candidates))
