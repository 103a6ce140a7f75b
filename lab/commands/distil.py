"""`diffusion-blend distil`: the command. The work in generation/distil.py loads only when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ...trainers.settings.config import PRESETS, Config
from ...trainers.settings.rules import RULES
from .options import Assignments, RewardFiles, help_option


def command(
    preset: Annotated[
        list[str], typer.Argument(help="The family's preset (sd15, sdxl, sd35, flux, toy), then TOML files; later win.")
    ],
    reward: RewardFiles = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="One number per reward, such as '0.6, 0.4'; repeat for a file each; none: all equal."),
    ] = None,
    alignment: Annotated[
        float | None, typer.Option(help="0 nothing, 1 as trained (the default), above 1 beyond.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Ranks of the LoRA; 0: the preset's.", min=0)] = 0,
    set: Assignments = None,
    help: Annotated[bool, help_option(Config, PRESETS, "Presets", RULES)] = False,
) -> None:
    """Train one LoRA that predicts what the exact blend predicts, from the merged blend on; no reward is needed.

    Settings are those of train, the preset distil behind the first one. A run that was stopped goes on when the same
    command is given again. Says at the end how far export and result are from the exact blend, on prompts held out.
    """
    from ...trainers.settings.config import read_config
    from ..generation.distil import OneFile, distil

    changes = [f"lora.rank={rank}"] if rank else []
    config = read_config([*preset[:1], "distil", *preset[1:]], [*(set or []), *changes])
    distil(config, OneFile.all_of(config, reward or [], weights or [], alignment))
