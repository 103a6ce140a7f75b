"""Reward against KL of training runs, side by side: `python -m diffusion_blend.lab.toy.curves OUT.png NAME=FOLDER ...`.

Bases are compared at equal distance from the base model: what one run reaches at more KL says nothing of its algorithm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ...trainers.loop.log import read_log


def points(folder: Path, reward: str) -> list[tuple[float, float, float]]:
    """(path KL, validated reward, minutes so far) of each validation of a run, the base first."""
    rows, minutes = [], 0.0
    for line in read_log(folder / "log.jsonl"):
        minutes += line.get("seconds", 0.0) / 60
        if f"valid_{reward}" in line:
            rows.append((line["valid_path_kl"], line[f"valid_{reward}"], minutes))
    return rows


def draw(runs: dict[str, tuple[Path, str]], out: Path) -> None:
    """One line per run; runs: its name -> (folder, reward)."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, (folder, reward) in runs.items():
        rows = points(folder, reward)
        gains = [row[1] - rows[0][1] for row in rows]
        axis.plot([row[0] for row in rows], gains, "o-", ms=3, label=f"{name} ({rows[-1][2]:.0f} min)")
    axis.set_xlabel("path KL to the base (nats per image)")
    axis.set_ylabel("reward above the base (in the base's spread)")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """OUT.png NAME=FOLDER:REWARD ..."""
    pairs = [argument.partition("=")[::2] for argument in arguments[1:]]
    draw(
        {name: (Path(place.rpartition(":")[0]), place.rpartition(":")[2]) for name, place in pairs}, Path(arguments[0])
    )


if __name__ == "__main__":
    main(sys.argv[1:])
