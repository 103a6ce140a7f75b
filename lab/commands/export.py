"""`diffusion-blend export`: one LoRA file out of a blend. The work in generation/export.py loads when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import BaseModel, RewardFiles, Weights


def command(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    reward: RewardFiles = None,
    base: BaseModel = "toy",
    weights: Weights = "",
    alignment: Annotated[float, typer.Option(help="0 nothing, 1 as trained, above 1 beyond.")] = 1.0,
    rank: Annotated[
        int, typer.Option(help="The most ranks per module, by singular values; 0: all, the exact sum.", min=0)
    ] = 0,
) -> None:
    """Write the merged blend as an ordinary LoRA, for ComfyUI, diffusers or anything else that reads one."""
    from ..generation.export import export
    from ..options import read_rewards

    print(export(base, read_rewards(reward or [], base), weights, alignment, rank, out))
