"""The command line, `diffusion-blend`. Heavy libraries load inside the commands, so that --help answers at once.

A command is a function in a module of its own that imports no more than typer; it is registered here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from .commands import convert, diagnose, distil, evaluate, export, fetch, generate, inspect, pairs, score, train
from .toy.demo import run as demo

app = typer.Typer(
    help="Dials over rewards for diffusion models: blend reward LoRAs at every denoising step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(name="demo")(demo.command)
app.command(name="fetch")(fetch.command)
app.command(name="generate")(generate.command)
app.command(name="diagnose")(diagnose.command)
app.command(name="evaluate", add_help_option=False)(evaluate.command)
app.command(name="score")(score.command)
app.command(name="train", add_help_option=False)(train.command)
app.command(name="pairs")(pairs.command)
app.command(name="inspect")(inspect.command)
app.command(name="convert")(convert.command)
app.command(name="export")(export.command)
app.command(name="distil", add_help_option=False)(distil.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 after one message for unusable input, 130 for Ctrl-C."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # their hints are for programmers; set the variable to see them
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        code = app(args=arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own, for options it cannot read
            return _failed(error.format_message(), 2)
        from ..blend_core import BlendError  # here, because it brings torch along

        if isinstance(error, BlendError):
            return _failed(str(error), 2)
        raise
    if code == 130:  # newer versions of typer return it instead of raising
        return _failed("stopped; what is finished is kept, and the same command goes on from there", 130)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int) -> int:
    if message:  # none where the parser has shown the help instead
        print(f"diffusion-blend: {message}", file=sys.stderr)
    return code
