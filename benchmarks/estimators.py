"""How near the cheap evaluations of a blend come to the exact one, on the toy studio: `make bench`.

Every evaluation samples the same prompts from the same noise; distances are of pixels, to DB-MPA's images. Writes
benchmarks/out/estimators.json, one row per evaluation, number of steps and eta.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusion_blend.blend_core import Blend
from diffusion_blend.lab.toy.demo.points import REWARDS
from diffusion_blend.lab.toy.demo.run import CFG, PROMPTS, open_studio
from diffusion_blend.pipelines import BlendEvaluation, Sampling, generate
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

OUT = Path(__file__).parent / "out" / "estimators.json"
BUDGETS = {"budget 1": 1.0, "budget 1.1": 1.1}
EVALUATIONS = ("random", "stratified", *BUDGETS)
STEPS, ETAS = (10, 20, 30, 50), (0.0, 1.0)
BATCH = 32


def rows_of(steps: int, eta: float, images: int, weight: float) -> list[dict]:
    """The rows of every evaluation at one setting. weight: of the first reward."""
    torch.set_num_threads(1)
    pipe, factors, rewards = open_studio()
    blend = Blend(REWARDS, (weight, 1 - weight))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(images)]

    def made(name: str) -> tuple[torch.Tensor, float, float]:
        kind, budget = ("budget", BUDGETS[name]) if name in BUDGETS else (name, None)
        evaluation = BlendEvaluation.of(kind, blend, factors, evaluations=budget)
        sampling = Sampling(steps, eta, CFG)
        parts, spent = [], []
        started = time.perf_counter()
        for first in range(0, images, BATCH):
            seeds = list(range(1 + first, 1 + min(first + BATCH, images)))
            plan = evaluation.plan(steps, seeds)
            parts.append(generate(pipe, evaluation, prompts[first : first + BATCH], seeds, sampling, plan))
            spent.append(plan.evaluations_per_step)
        return torch.cat(parts), sum(spent) / len(spent), (time.perf_counter() - started) / images

    exact, *_ = made("exact")
    rows = []
    for name in EVALUATIONS:
        pictures, spent, seconds = made(name)
        away = (pictures - exact).square().flatten(1).mean(1)
        rows.append(
            {
                "evaluation": name,
                "steps": steps,
                "eta": eta,
                "rmse": away.mean().sqrt().item(),
                "median": away.sqrt().median().item(),
                "rewards": {reward: rewards[reward](pictures, prompts).mean().item() for reward in REWARDS},
                "evaluations_per_step": spent,
                "seconds_per_image": seconds,
                "images": images,
                "weight": weight,
            }
        )
    return rows


def main(
    images: Annotated[int, typer.Option(help="Images per row.", min=1)] = 64,
    weight: Annotated[float, typer.Option(help="Weight of the first reward.", min=0, max=1)] = 0.5,
    out: Annotated[Path, typer.Option(help="The JSON to write.")] = OUT,
) -> None:
    """Sample, measure, write and print."""
    settings = [(steps, eta) for steps in sorted(STEPS, reverse=True) for eta in ETAS]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(rows_of, *setting, images, weight) for setting in settings]
        rows = [row for future in tqdm(running, desc="settings") for row in future.result()]
    rows.sort(key=lambda row: (row["eta"], row["steps"], EVALUATIONS.index(row["evaluation"])))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows}, indent=1))
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """Distances, and how many times nearer than iid choice at the same setting."""
    iid = {(row["steps"], row["eta"]): row for row in rows if row["evaluation"] == "random"}
    table = Table("eta", "steps", "evaluation", "evals/step", "rmse", "nearer", "median", "nearer", *REWARDS, box=None)
    for row in rows:
        first = iid[row["steps"], row["eta"]]
        figures = [f"{row[name]:.4f} {first[name] / row[name]:.1f}x".split() for name in ("rmse", "median")]
        scores = [f"{row['rewards'][name]:+.3f}" for name in REWARDS]
        head = [f"{row['eta']:g}", str(row["steps"]), row["evaluation"], f"{row['evaluations_per_step']:.2f}"]
        table.add_row(*head, *(text for pair in figures for text in pair), *scores)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
