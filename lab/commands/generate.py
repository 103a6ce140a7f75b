"""`diffusion-blend generate`: the options of a run. The work in generation/run.py loads only when it is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from .options import RunOptions, with_tables

MODELS = ("base", "reward", "config")  # with --repeat: where the models lie now; they must be the same
REPEATABLE = {"repeat", "out", "device", *MODELS}  # the options that go with --repeat; the record decides all others


@dataclass(frozen=True)
class GenerateOptions(RunOptions):
    """A run whose images are kept."""

    evaluation: Annotated[
        str,
        typer.Option(
            help="exact, budget, stratified, random (blends of predictions), merged (all LoRAs added up), msdda or "
            "base."
        ),
    ] = "exact"
    until: Annotated[
        float,
        typer.Option(help="Share of the steps after which the base model is alone: 0.9, the last tenth.", min=0, max=1),
    ] = 1.0
    budget: Annotated[
        float | None, typer.Option(help="Evaluations per step of the evaluation budget; default 1.1.", min=1)
    ] = None
    etas: Annotated[
        str, typer.Option(help="msdda: eta of each reward's training, such as '1, 0.6'; empty: as the files say, or 1.")
    ] = ""
    base_eta: Annotated[float, typer.Option(help="msdda: the same for the base model.", min=0, max=1)] = 1.0
    batch_size: Annotated[int, typer.Option(help="Images per pass.", min=1)] = 8
    execution: Annotated[str, typer.Option(help="sequential, or batched: all rewards in one pass.")] = "sequential"


@with_tables
def command(
    context: typer.Context,
    options: GenerateOptions,
    repeat: Annotated[Path | None, typer.Option(help="Make the images of this generation.json again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and generation.json.")] = Path("generated"),
) -> None:
    """Make images of a blend, and a JSON of everything needed to repeat them.

    A run that was stopped goes on when the same command is given again.
    """
    from ..generation.run import run

    if repeat is None:
        run(options.request(), out)
    else:
        _refuse_other_options(context)
        _repeat(repeat, options, "base" in _typed(context), out)


def _repeat(record_file: Path, options: GenerateOptions, base_moved: bool, out: Path) -> None:
    """The images of a record again, its models in other places where options name them. base_moved: --base came."""
    from ..generation.record import Request, read_record
    from ..generation.run import run
    from ..options import chosen_device, read_rewards

    record = read_record(record_file)
    request = Request(**record["request"]).reopened(record_file.parent)
    changes = {"rewards": _moved(request.rewards, read_rewards(options.reward or [], options.base))}
    changes |= {"base": options.base} if base_moved else {}
    changes |= {"config": options.config} if options.config else {}
    changes |= {"device": chosen_device(options.device)} if options.device != "auto" else {}
    run(replace(request, **changes), out, record)


def _refuse_other_options(context: typer.Context) -> None:
    from ...blend_core import BlendError

    others = [f"--{name.replace('_', '-')}" for name in _typed(context) if name not in REPEATABLE]
    if others:
        raise BlendError(
            f"{', '.join(others)} came with --repeat, which takes all settings from the record. Leave out everything "
            "but --out, --device and where the models lie now (--base, --reward, --config), or start a new run without "
            "--repeat."
        )


def _typed(context: typer.Context) -> list[str]:
    """The options that came on the command line."""
    return [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]


def _moved(recorded: dict[str, str], present: dict[str, str]) -> dict[str, str]:
    """label -> file of a record's rewards, those of `present` in other places."""
    from ...blend_core import BlendError

    for label in present.keys() - recorded.keys():
        raise BlendError(
            f"--reward names {label}, which the record has not. It has {', '.join(recorded) or 'no rewards'}: give one "
            "of these with the place where its file lies now."
        )
    return recorded | present
