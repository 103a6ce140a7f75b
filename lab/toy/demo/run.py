"""The demo: the toy studio sampled over sweeps of preference and alignment, scored, drawn and tabulated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from .points import REWARDS, SWEPT, Point, Setting, standard_error

WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the first reward
ALIGNMENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
PROMPTS = (
    "a green circle on a striped white background",
    "a red triangle on a dotted teal background",
    "a yellow triangle on a plain black background",
    "a blue cross on a striped teal background",
    "a purple circle on a dotted white background",
    "a orange square on a plain grey background",
    "a blue square on a striped black background",
    "a red cross on a dotted grey background",
)
STEPS, ETA, CFG = 20, 1.0, 2.0  # what the LoRAs were trained with


def settings() -> Iterator[Setting]:
    """All points of the demo, in the report's order."""
    yield Setting("base", (0.5, 0.5), alignment=0.0)
    yield Setting("single", (1.0, 0.0))
    yield Setting("single", (0.0, 1.0))
    for method in SWEPT:
        for weight in WEIGHTS:
            yield Setting(method, (weight, 1 - weight))
    for alignment in ALIGNMENTS:
        yield Setting("kla", (0.5, 0.5), alignment)


def command(
    out: Annotated[Path, typer.Option(help="Folder for grid.png, pareto.png and report.json.")] = Path("demo_out"),
    seeds: Annotated[int, typer.Option(help="Images per prompt and point; 8 prompts, 28 points.", min=1)] = 8,
) -> None:
    """Sample the toy studio over sweeps of preference and alignment; write pictures and a report."""
    from .pictures import draw_grid, draw_pareto

    out.mkdir(parents=True, exist_ok=True)
    points = measure(seeds)
    report = {"rewards": list(REWARDS), "points": [point.row() for point in points]}
    (out / "report.json").write_text(json.dumps(report, indent=1))
    draw_grid(points, PROMPTS, out / "grid.png")
    draw_pareto(points, out / "pareto.png")
    print_table(points)
    print_findings(points)
    print(f"\nPictures and figures: {out / 'grid.png'}, {out / 'pareto.png'}, {out / 'report.json'}")


def measure(seeds: int) -> list[Point]:
    """Sample and score every setting from the same prompts and noise.

    Processes of one thread each: two threads of one process slow down tenfold where another program wants a core.
    """
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    todo = list(settings())
    workers = min(os.cpu_count() or 1, 8)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(measure_one, setting, seeds) for setting in todo]
        try:
            points = [future.result() for future in tqdm(running, desc="sampling", unit="point")]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _add_distances(points)
    return points


@cache
def open_studio() -> tuple:
    """This process's pipeline, the LoRAs' factors, and the rewards."""
    import diffusers
    import torch
    import transformers

    from ....pipelines import load_factors
    from ....pipelines.loading import hide_loading_bars
    from .. import STUDIO
    from ..model import load_base
    from ..rewards import toy_rewards

    torch.set_num_threads(1)
    hide_loading_bars()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    pipe = load_base()
    factors, _ = load_factors(pipe, [STUDIO / "loras" / f"{name}.safetensors" for name in REWARDS])
    return pipe, factors, toy_rewards()


def measure_one(setting: Setting, seeds: int) -> Point:
    """Sample and score one setting."""
    import time

    from ....blend_core import Blend
    from ....pipelines import BlendEvaluation, Sampling, generate

    pipe, factors, rewards = open_studio()
    blend = Blend(REWARDS, setting.weights, setting.alignment)
    evaluation = BlendEvaluation.of(setting.evaluation, blend, factors)
    prompts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    numbers = list(range(1, len(prompts) + 1))
    started = time.perf_counter()
    images = generate(pipe, evaluation, prompts, numbers, Sampling(STEPS, ETA, CFG))
    seconds = time.perf_counter() - started
    return Point(
        setting,
        images,
        {name: reward(images, prompts) for name, reward in rewards.items()},
        evaluation.plan(STEPS, [0]).evaluations_per_step,
        seconds / len(images),
    )


def _add_distances(points: list[Point]) -> None:
    """Root mean square difference of each swept point's pixels to DB-MPA's from the same noise."""
    exact = {point.setting.weights: point.images for point in points if point.setting.method == "mpa"}
    for point in points:
        if point.setting.method in SWEPT:
            difference = point.images - exact[point.setting.weights]
            point.rmse_to_mpa = difference.square().mean().sqrt().item()


def print_table(points: list[Point]) -> None:
    """The report as a table."""
    from rich import box
    from rich.table import Table

    from ...tables import print_wide

    table = Table(
        box=box.SIMPLE,
        title=f"n = {len(points[0].images)} per row; rewards in the base's spread; to MPA: RMSE of pixels",
    )
    columns = (f"w({REWARDS[0]})", "align", *points[0].rewards, "evals", "s/image", "to MPA")
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        scores = [f"{mean:+.2f}±{point.standard_errors[name]:.2f}" for name, mean in point.rewards.items()]
        distance = "" if point.rmse_to_mpa is None else f"{point.rmse_to_mpa:.4f}"
        head = (point.setting.method, f"{point.setting.weights[0]:.2f}", f"{point.setting.alignment:.1f}")
        table.add_row(*head, *scores, f"{point.evaluations_per_step:.0f}", f"{point.seconds_per_image:.3f}", distance)
    print_wide(table, 100)


def print_findings(points: list[Point]) -> None:
    """What the run says on the three questions people ask first, whichever way it falls."""
    at = {(p.setting.method, p.setting.weights[0]): p for p in points}
    for i, name in enumerate(REWARDS):
        means = [at["mpa", weight].rewards[name] for weight in WEIGHTS]
        rising = sorted(means, reverse=i == 0) == means
        print(f"DB-MPA: mean {name} {'grows' if rising else 'does NOT always grow'} with its weight: {_series(means)}")
    mpa, soup = at["mpa", 0.5].weighted(), at["soup", 0.5].weighted()
    difference = f"{(mpa - soup).mean():+.3f} ± {standard_error(mpa - soup):.3f}"
    print(f"weighted reward at 0.5: DB-MPA {mpa.mean():+.3f}, soup {soup.mean():+.3f}; paired difference {difference}")
    distances = {method: at[method, 0.5].rmse_to_mpa for method in ("random", "stratified")}
    ratio = distances["random"] / distances["stratified"]
    print(
        f"distance to DB-MPA at 0.5: random {distances['random']:.4f}, stratified {distances['stratified']:.4f}",
        end="",
    )
    print(f" ({ratio:.1f} times nearer)" if ratio > 1 else " (not nearer)")


def _series(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)
