"""`diffusion-blend generate`: the options of a run. The work in generation/run.py loads only when it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

MODELS = ("base", "reward", "config")  # with --repeat: where the models lie now; they must be the same
REPEATABLE = {"repeat", "out", "device", *MODELS}  # the options that go with --repeat; the record decides all others


def command(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="Diffusers folder, hub id, .safetensors checkpoint, or toy.")] = "toy",
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a reward LoRA; repeat. With --base toy a NAME is enough.")
    ] = None,
    weights: Annotated[str, typer.Option(help="One number per reward, such as '0.6, 0.4'; empty: all alike.")] = "",
    alignment: Annotated[float, typer.Option(help="0 the base model, 1 as trained, above 1 beyond.")] = 1.0,
    method: Annotated[
        str,
        typer.Option(
            help="exact, budget, control_variate, stratified, sampled, anchored (blends of predictions), merged (all "
            "LoRAs added up), msdda or base."
        ),
    ] = "exact",
    budget: Annotated[
        float | None, typer.Option(help="Evaluations per step of the methods budget and anchored; default 1.1.", min=1)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for more.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 30,
    eta: Annotated[float, typer.Option(help="DDIM's eta: 0 deterministic, 1 ancestral.", min=0, max=1)] = 0.0,
    etas: Annotated[
        str, typer.Option(help="msdda: eta of each reward's training, such as '1, 0.6'; empty: as the files say, or 1.")
    ] = "",
    base_eta: Annotated[float, typer.Option(help="msdda: the same for the base model.", min=0, max=1)] = 1.0,
    cfg: Annotated[float, typer.Option(help="Guidance; 1 switches it off. The toy model likes 2.", min=0)] = 7.5,
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Images per prompt, seeds counting up.", min=1)] = 1,
    size: Annotated[int | None, typer.Option(help="Pixels of each side; default: the model's own.", min=8)] = None,
    config: Annotated[str | None, typer.Option(help="For a checkpoint: a diffusers folder of its family.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per pass.", min=1)] = 8,
    execution: Annotated[str, typer.Option(help="sequential, or batched: all rewards in one pass.")] = "sequential",
    repeat: Annotated[Path | None, typer.Option(help="Make the images of this generation.json again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and generation.json.")] = Path("generated"),
) -> None:
    """Make images of a blend, and a JSON of everything needed to repeat them.

    A run that was stopped goes on when the same command is given again.
    """
    from ..generation.record import Request, read_record
    from ..generation.run import read_rewards, run
    from ..options import chosen_device, read_prompts

    if repeat is not None:
        _refuse_other_options(context)
        record = read_record(repeat)
        request = Request(**record["request"]).reopened(repeat.parent)
        changes = {"base": base} if "base" in _typed(context) else {}
        changes |= {"config": config} if config else {}
        request = replace(request, rewards=_moved(request.rewards, read_rewards(reward or [], base)), **changes)
        run(request if device == "auto" else replace(request, device=chosen_device(device)), out, record)
        return
    request = Request(
        base=base,
        prompts=[*(prompt or []), *(read_prompts(prompts) if prompts else [])],
        rewards=read_rewards(reward or [], base),
        weights=weights,
        alignment=alignment,
        method=method,
        budget=budget,
        steps=steps,
        eta=eta,
        etas=etas,
        base_eta=base_eta,
        cfg=cfg,
        seed=seed,
        count=count,
        size=size,
        config=config,
        dtype=dtype,
        device=chosen_device(device),
        batch_size=batch_size,
        execution=execution,
    )
    run(request, out)


def _refuse_other_options(context: typer.Context) -> None:
    from ...blend_core import BlendError

    others = [f"--{name.replace('_', '-')}" for name in _typed(context) if name not in REPEATABLE]
    if others:
        raise BlendError(
            f"{', '.join(others)} came beside --repeat, which takes all settings from the record. Leave out everything "
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
