"""The command line, `diffusion-blend`. Heavy libraries load inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys

import typer

from ..blend_core.errors import BlendError
from . import demo, generate

app = typer.Typer(
    help="Dials over rewards for diffusion models: blend reward LoRAs at every denoising step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(name="demo")(demo.command)
app.command(name="generate")(generate.command)


def main() -> None:
    """Run a command; a BlendError is one message and exit code 2, Ctrl-C exit code 130."""
    try:
        app(standalone_mode=False)
    except BlendError as error:
        _stop(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; what is finished is kept", 130)
    except typer.Exit as finished:
        sys.exit(finished.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the parser's own messages
            raise
        _stop(error.format_message(), 2)


def _stop(message: str, code: int) -> None:
    print(f"diffusion-blend: {message}", file=sys.stderr)
    sys.exit(code)
