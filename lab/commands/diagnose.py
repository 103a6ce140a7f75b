"""`diffusion-blend diagnose`: options and tables. The work in diagnosis/run.py loads only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...blend_core.diagnostics import Diagnosis


def command(
    base: Annotated[str, typer.Option(help="Diffusers folder, hub id, .safetensors checkpoint, or toy.")] = "toy",
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a reward LoRA; repeat. With --base toy a NAME is enough.")
    ] = None,
    weights: Annotated[str, typer.Option(help="One number per reward, such as '0.6, 0.4'; empty: all alike.")] = "",
    alignment: Annotated[float, typer.Option(help="0 the base model, 1 as trained, above 1 beyond.")] = 1.0,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for more.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    eta: Annotated[float, typer.Option(help="DDIM's eta: 0 deterministic, 1 ancestral.", min=0, max=1)] = 0.0,
    cfg: Annotated[float, typer.Option(help="Guidance; 1 switches it off. The toy model likes 2.", min=0)] = 7.5,
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Images per prompt; all of all prompts in one pass.", min=1)] = 1,
    size: Annotated[int | None, typer.Option(help="Pixels of each side; default: the model's own.", min=8)] = None,
    config: Annotated[str | None, typer.Option(help="For a checkpoint: a diffusers folder of its family.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    reward_model: Annotated[
        list[str] | None,
        typer.Option(help="REWARD=NAME probes the Jensen gap of reward LoRA NAME with the reward it was trained on."),
    ] = None,
    kl_weight: Annotated[
        float | None, typer.Option(help="KL weight of the probed LoRAs whose files do not state it.", min=1e-9)
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the base model per probed state.", min=3)] = 32,
    probes: Annotated[int, typer.Option(help="Steps that are probed, from the first on.", min=1)] = 3,
    models: Annotated[
        list[Path] | None, typer.Option(help="Folder with weights of rewards. Default: ComfyUI's models/reward_models.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for diagnosis.json and diagnosis.png.")] = Path("diagnosis"),
) -> None:
    """Say whether a blend can be trusted: how far its LoRAs disagree, and how large the gap is that it neglects.

    Without --reward-model it costs one run with all LoRAs and the base. A probe costs SAMPLES runs of the base model
    from each probed step on.
    """
    from ..diagnosis.run import Probe, run
    from ..generation.record import Request
    from ..generation.run import read_rewards
    from ..options import chosen_device, read_prompts
    from ..scores.chosen_rewards import library_of

    request = Request(
        base=base,
        prompts=[*(prompt or []), *(read_prompts(prompts) if prompts else [])],
        rewards=read_rewards(reward or [], base),
        weights=weights,
        alignment=alignment,
        steps=steps,
        eta=eta,
        cfg=cfg,
        seed=seed,
        count=count,
        size=size,
        config=config,
        dtype=dtype,
        device=chosen_device(device),
    )
    probe = Probe.of(reward_model or [], list(request.rewards), kl_weight, samples, probes)
    print_diagnosis(run(request, probe, library_of(models or []), out))
    print(f"Written: {out / 'diagnosis.json'}, {out / 'diagnosis.png'}")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The tables, then the verdict."""
    from ..tables import print_rows

    print(diagnosis.formula)
    print_rows(diagnosis.rows(), "change of the base's direction; cosines")
    if diagnosis.gaps:
        print_rows(diagnosis.gap_rows(), "Jensen gap")
    print(f"{diagnosis.evaluations} evaluations per image ({diagnosis.blend_evaluations} without diagnosis)")
    print(diagnosis.verdict)
