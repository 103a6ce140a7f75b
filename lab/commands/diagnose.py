"""`diffusion-blend diagnose`: options and tables. The work in diagnosis/run.py loads only when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import RunOptions, WeightFolders, with_tables

if TYPE_CHECKING:
    from ...blend_core.diagnostics import Diagnosis


@dataclass(frozen=True)
class DiagnoseOptions(RunOptions):
    """A run that is looked into."""

    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20
    count: Annotated[int, typer.Option(help="Images per prompt; all of all prompts in one pass.", min=1)] = 1


@with_tables
def command(
    options: DiagnoseOptions,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(help="REWARD=NAME probes the Jensen gap of reward LoRA NAME with the reward it was trained on."),
    ] = None,
    kl_weight: Annotated[
        float | None, typer.Option(help="KL weight of the probed LoRAs whose files do not state it.", min=1e-9)
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the base model per probed state.", min=3)] = 32,
    probes: Annotated[int, typer.Option(help="Steps that are probed, from the first on.", min=1)] = 3,
    score: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME=WEIGHT of a reward; repeat. Scores images of merged and of exact, paired."),
    ] = None,
    images: Annotated[int, typer.Option(help="Images per prompt and way that --score scores.", min=1)] = 16,
    models: WeightFolders = None,
    out: Annotated[Path, typer.Option(help="Folder for diagnosis.json and diagnosis.png.")] = Path("diagnosis"),
) -> None:
    """Say whether a blend can be trusted: how far its LoRAs disagree, and how large the gap is that it neglects.

    It says too whether merged evaluation would do. Without --reward-model it costs one run with all LoRAs, the base and
    merged. A probe costs SAMPLES runs of the base model from each probed step on. --score makes IMAGES of every prompt
    by merged and by exact evaluation, from the same noise, and says which way scores higher, with its interval.
    """
    from ..diagnosis.comparison import Comparison
    from ..diagnosis.run import GapProbe, run
    from ..scores.chosen_rewards import ScoreSettings, chosen_rewards, library_of

    request = options.request()
    probe = GapProbe.of(reward_model or [], list(request.rewards), kl_weight, samples, probes)
    library, settings = library_of(models or []), ScoreSettings(device=request.device)
    comparison = Comparison(chosen_rewards(score, library, settings) if score else (), images)
    print_diagnosis(run(request, probe, library, out, comparison))
    print(f"Written: {out / 'diagnosis.json'}, {out / 'diagnosis.png'}")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The tables, then the verdict."""
    from ..tables import print_rows

    print(diagnosis.formula)
    columns = "change of the base's direction; cosines; merged - exact over exact - base, and the cosine of both"
    print_rows(diagnosis.rows(), columns)
    if diagnosis.gaps:
        print_rows(diagnosis.gap_rows(), "Jensen gap")
    if diagnosis.scores:
        print_rows(diagnosis.score_rows(), "rewards of images made both ways, from the same noise")
    print(f"{diagnosis.evaluations} evaluations per image ({diagnosis.blend_evaluations} without diagnosis)")
    print(diagnosis.verdict)
    if diagnosis.way:
        print(diagnosis.way)
