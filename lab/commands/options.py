"""Options that commands share, each declared once, and commands that take a table of options as one argument.

Imports no more than typer and the standard library, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...trainers.settings.fields import settings_help

if TYPE_CHECKING:
    from ..generation.record import Request

BaseModel = Annotated[str, typer.Option(help="Diffusers folder, hub id, .safetensors checkpoint, or toy.")]
RewardFiles = Annotated[
    list[str] | None, typer.Option(help="NAME=PATH of a reward LoRA; repeat. With --base toy a NAME is enough.")
]
Weights = Annotated[str, typer.Option(help="One number per reward, such as '0.6, 0.4'; empty: all equal.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Assignments = Annotated[list[str] | None, typer.Option(help="key=value, such as sampling.steps=20; repeat.")]
WeightFolders = Annotated[
    list[Path] | None, typer.Option(help="Folder with weights; repeat. Default: ComfyUI's models/reward_models.")
]


@dataclass(frozen=True)
class RunOptions:
    """Which models sample which prompts, how: what every command that samples a blend has."""

    base: BaseModel = "toy"
    reward: RewardFiles = None
    weights: Weights = ""
    alignment: Annotated[float, typer.Option(help="0 the base model, 1 as trained, above 1 beyond.")] = 1.0
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for more.")] = None
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 30
    eta: Annotated[float, typer.Option(help="DDIM's eta: 0 deterministic, 1 ancestral.", min=0, max=1)] = 0.0
    cfg: Annotated[float, typer.Option(help="Guidance; 1 switches it off. The toy model likes 2.", min=0)] = 7.5
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt.", min=0)] = 0
    count: Annotated[int, typer.Option(help="Images per prompt, seeds counting up.", min=1)] = 1
    size: Annotated[int | None, typer.Option(help="Pixels of each side; default: the model's own.", min=8)] = None
    config: Annotated[str | None, typer.Option(help="For a checkpoint: a diffusers folder of its family.")] = None
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32"
    device: Device = "auto"

    def request(self) -> Request:
        """The run that they ask for. Raises BlendError for options that cannot be read."""
        from ..generation.record import Request
        from ..options import chosen_device, read_prompts, read_rewards

        names = {entry.name for entry in dataclasses.fields(Request)}
        options = {name: value for name, value in vars(self).items() if name in names}
        return Request(**options | {
            "prompts": [*(self.prompt or []), *(read_prompts(self.prompts) if self.prompts else [])],
            "rewards": read_rewards(self.reward or [], self.base),
            "device": chosen_device(self.device),
        })  # fmt: skip


def help_option(table: type, presets: Path, what: str, rules: Sequence[Callable] = ()) -> Any:
    """The option --help of a command that takes settings: its own help, then every setting (fields.settings_help)."""

    def show(context: typer.Context, wanted: bool) -> None:
        if wanted:
            print(context.get_help())
            print(settings_help(table, presets, what, rules))
            raise typer.Exit()

    return typer.Option("--help", callback=show, is_eager=True, help="Explain every setting.")


def with_tables(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: every argument whose type is a dataclass becomes the options that are its fields."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters, tables = [], {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind):
            tables[parameter.name] = kind
            parameters += _options(kind)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))

    @functools.wraps(command)
    def call(**values: Any) -> None:
        filled = {
            name: kind(**{entry.name: values.pop(entry.name) for entry in dataclasses.fields(kind)})
            for name, kind in tables.items()
        }
        command(**values, **filled)

    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _options(table: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(table, include_extras=True)
    return [
        inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=hints[entry.name]
        )
        for entry in dataclasses.fields(table)
    ]
