"""All trainers on one chain, one reward and the same prompts: `python -m diffusion_blend.lab.toy.compare`.

Writes docs/trainers.png, reward against KL, and prints the table of docs/trainers.md. Runs go below lab/toy/run/compare
and go on where they were stopped; from the time of single epochs some 40 minutes on two idle cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .curves import draw, points
from .make import ENVIRONMENT, RUN

REWARD = "calm"
PICTURE = Path(__file__).parents[2] / "docs" / "trainers.png"
PAIRS = RUN / "compare" / "pairs"
ALL_LAYERS = "lora.targets=" + str(
    ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
     "conv_shortcut"]
)  # fmt: skip
DRAFT = ("algorithm=draft", "rewarded_steps=0", "prompts_per_epoch=16", "images_per_prompt=1", "epochs=40",
         "optimisation.images_per_pass=16", "lora.rank=8", ALL_LAYERS)  # fmt: skip
RUNS = {
    "dpok": ("algorithm=dpok", "epochs=50", "optimisation.learning_rate=8e-4"),
    "grpo": ("algorithm=grpo", "epochs=90"),
    "draft x0": (*DRAFT, "draft.through=x0"),
    "draft last": (*DRAFT, "epochs=45", "draft.through=last", "draft.steps=5"),
    # the rate falls, because at a constant one the run broke down past 100 epochs
    "dpo": ("algorithm=dpo", f"prompts.pairs={PAIRS}", "prompts.file=", "kl_weight=0.005", "prompts_per_epoch=32",
            "images_per_prompt=1", "epochs=130", "dpo.draws=3", "optimisation.learning_rate=3.5e-3",
            "optimisation.warm_up=5", "optimisation.decay=linear", "output.validate_every=13"),
}  # fmt: skip


def main() -> None:
    """Train what is missing, two processes at a time, then draw and print."""
    make_pairs()
    running: list[subprocess.Popen] = []
    for name, settings in RUNS.items():
        if len(running) == 2:
            finish(running.pop(0))
        running.append(start("train", settings, f"output.folder={folder(name)}"))
    for process in running:
        finish(process)
    report({name: folder(name) for name in RUNS})


def report(folders: dict[str, Path]) -> None:
    """The picture and the table of finished runs."""
    draw({name: (place, REWARD) for name, place in folders.items()}, PICTURE)
    table = Table("run", "gain over the base at path KL", "minutes", box=None)
    for name, place in folders.items():
        first, *rows = points(place, REWARD)
        gains = ", ".join(f"{gain - first[1]:+.2f} at {kl:.0f}" for kl, gain, _ in rows)
        table.add_row(name, gains, f"{rows[-1][2]:.0f}")
    Console(width=140).print(table)


def folder(name: str) -> Path:
    """Where a run is kept."""
    return RUN / "compare" / name.replace(" ", "_")


def make_pairs() -> None:
    """Preference pairs of the base: the best and the worst of 16 samples of a prompt, 96 times."""
    if not (PAIRS / "pairs.jsonl").exists():
        finish(start("pairs", (), extra=("--count", "96", "--candidates", "16", "--out", str(PAIRS))))


def start(command: str, settings: tuple[str, ...], *more: str, extra: tuple[str, ...] = ()) -> subprocess.Popen:
    """A command of the trainers in a process of one thread."""
    options = [part for setting in (f"reward.name=toy:{REWARD}", *settings, *more) for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_blend.lab", command, "toy", "toy_open", *options, *extra], env=ENVIRONMENT
    )


def finish(process: subprocess.Popen) -> None:
    """Wait for it, and stop here where it failed."""
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(process.args)} failed; its messages stand above")


if __name__ == "__main__":
    main()
