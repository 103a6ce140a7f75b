"""`diffusion-blend train`: the command. The loop is in trainers/train.py, which loads only when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ...trainers.settings.config import PRESETS, Config
from ...trainers.settings.rules import RULES
from .options import Assignments, help_option


def command(
    preset: Annotated[
        list[str] | None, typer.Argument(help="Presets or TOML files; later ones win. --help lists the presets.")
    ] = None,
    set: Assignments = None,
    show: Annotated[bool, typer.Option("--show", help="Print the settings as they come out, and stop.")] = False,
    help: Annotated[bool, help_option(Config, PRESETS, "Presets", RULES)] = False,
) -> None:
    """Train a reward LoRA. A run that was stopped goes on when the same command is given again.

    On several GPUs: accelerate launch -m diffusion_blend.lab train ...
    """
    from ...trainers.settings.config import read_config
    from ...trainers.settings.fields import to_flat

    config = read_config(preset or [], set or [])
    if show:
        for key, value in to_flat(config).items():
            print(f"{key} = {value!r}")
        return
    from ..toy.training import resolved

    config, rewards = resolved(config)
    from ...trainers.train import train

    print(train(config, rewards))
