"""Merged against exact for weak and strong LoRAs of the toy studio: `python -m diffusion_blend.lab.toy.strengths`.

Trains calm and vivid further than the studio's own pair, evaluates every pair at equal weights, and writes the tables
of docs/results.md. Files go below lab/toy/run/strengths; what is there is not made again, and what was stopped goes on.
The words around the tables are written by hand: read them again when the figures change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ...blend_core.diagnostics import Estimate
from ...blend_core.rewards import Draws
from ...trainers.settings.config import read_config
from ..evaluation.methods import METHODS
from . import MARK
from .late_cut import interval, table
from .make import ENVIRONMENT, RUN
from .results import DOCS, filled

FOLDER = RUN / "strengths"
REWARDS = ("calm", "vivid")
# Twice the studio's rate for few epochs. Validation chooses nothing, it says how far they came: the last state is kept.
COMMON = (
    "optimisation.learning_rate=1.5e-3", "optimisation.warm_up=4", "optimisation.average=0.8", "output.keep_best=false",
    "output.validate_every=4", "output.checkpoint_every=4",
)  # fmt: skip
STRENGTHS = {
    "kl100": (*COMMON, "kl_weight=0.003", "epochs=8", "optimisation.decay=linear"),
    "kl400": (*COMMON, "kl_weight=0.0015", "epochs=8", "optimisation.decay=constant"),
}  # about so many nats; the studio's own: kl_weight 0.008, 40 epochs, linear, about 60
WAYS = ("mpa", "merged", "soup_factors")
EVALUATION = (
    f"methods={['base', 'basis', *WAYS]}", "preferences=[[0.5, 0.5]]", "models.oracles=[]", "prompts.seeds=8",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two LoRAs, of calm and of vivid. strength: one of STRENGTHS; empty for the studio's own.

    seeds: of their trainings. Equal ones draw the same factors A to start from.
    """

    strength: str = ""
    seeds: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return "{}, seeds {} and {}".format(self.strength, *self.seeds) if self.strength else "studio's own"

    @property
    def folder(self) -> Path:
        """Where its evaluation goes."""
        return FOLDER / ("{}_seeds{}{}".format(self.strength, *self.seeds) if self.strength else "studio")

    def loras(self) -> list[str]:
        """name=file of both, as evaluate takes them."""
        files = zip(REWARDS, self.seeds, strict=True)
        return [f"{r}={lora(self.strength, r, seed) if self.strength else MARK + r}" for r, seed in files]


def pairs_of(seeds: int) -> list[Pair]:
    """The studio's own, and of every strength each seed with itself, then with the next."""
    matched = [*((s, s) for s in range(seeds)), *((s, (s + 1) % seeds) for s in range(seeds if seeds > 1 else 0))]
    return [Pair(), *(Pair(strength, two) for strength in STRENGTHS for two in matched)]


def main() -> None:
    """Train what is missing, evaluate, then copy the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds per strength (default: %(default)s)")
    pairs = pairs_of(parser.parse_args().seeds)
    for pair in pairs[1:]:
        for reward, seed in zip(REWARDS, pair.seeds, strict=True):
            train(pair.strength, reward, seed)
    publish(pairs)


def publish(pairs: Sequence[Pair]) -> None:
    """Evaluate what is missing and copy the tables."""
    page = DOCS / "results.md"
    tables = tables_of({pair.name: Cubes.read(evaluated(pair)) for pair in pairs})
    page.write_text(filled(page.read_text(encoding="utf8"), tables, "weak and strong"), "utf8")


def lora(strength: str, reward: str, seed: int) -> Path:
    """The file of a trained LoRA."""
    return FOLDER / f"{strength}_seed{seed}" / f"{reward}.safetensors"


def train(strength: str, reward: str, seed: int) -> None:
    """A LoRA that is missing; its settings and the log's last line go beside it."""
    file = lora(strength, reward, seed)
    if file.exists():
        return
    run = file.with_name(f"{reward}_run")
    own_seed = read_config(["toy"]).seed  # of the studio's own pair
    settings = [f"reward.name={MARK}{reward}", *STRENGTHS[strength], f"seed={own_seed + seed}"]
    _command("train", "toy", *settings, f"output.title={reward}", f"output.folder={run}")
    last = json.loads((run / "log.jsonl").read_text(encoding="utf8").splitlines()[-1])
    record = {"preset": "toy", "settings": settings, "log": last}
    file.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf8")
    shutil.copy(run / file.name, file)


def evaluated(pair: Pair) -> Path:
    """The folder of a finished evaluation."""
    out = pair.folder / "evaluation"
    loras = f"models.loras={pair.loras()}"
    _command("evaluate", "toy", *EVALUATION, loras, options=("--device=cpu", f"--out={out}"))
    return out


def _command(name: str, preset: str, *settings: str, options: Sequence[str] = ()) -> None:
    chosen = [f"--set={setting}" for setting in settings]
    command = [sys.executable, "-m", "diffusion_blend.lab", name, preset, *options, *chosen]
    subprocess.run(command, env=ENVIRONMENT, check=True)


@dataclass(frozen=True)
class Cubes:
    """An evaluation's rows as its summary has them, and the weighted reward of its ways, (prompts, seeds) each."""

    summary: dict
    weighted: dict[str, np.ndarray]

    @classmethod
    def read(cls, out: Path) -> Cubes:
        """From the folder of a finished evaluation."""
        summary = json.loads((out / "summary.json").read_text(encoding="utf8"))
        images = pq.read_table(out / "scores.parquet").to_pylist()
        prompts = len({image["prompt"] for image in images})
        rewards = [f"reward.{name}" for name in summary["rewards"]]
        # equal weights, and the file's order: seed by seed of one prompt after another
        values = {w: [np.mean([i[name] for name in rewards]) for i in images if i["method"] == w] for w in WAYS}
        return cls(summary, {way: np.reshape(of_way, (prompts, -1)) for way, of_way in values.items()})

    def difference(self, way: str, other: str) -> Estimate:
        """Of the weighted rewards, image by image, with its interval over prompts and seeds."""
        difference = self.weighted[way] - self.weighted[other]
        return Draws(*difference.shape).mean(difference)

    def kl(self, way: str) -> float:
        """The mean path KL of a way."""
        return next(row["kl"] for row in self.summary["rows"] if row["method"] == way)


def tables_of(cubes: dict[str, Cubes]) -> str:
    """The differences between ways per pair, then every pair's rows. cubes: by the pair's name."""
    heads = ["LoRAs", "path KL, DB-MPA / merged / soup of factors"]
    heads += [f"{METHODS[way].title} minus {METHODS[other].title} [95%]" for way, other in _COMPARED]
    answers = [
        [name, " / ".join(f"{cube.kl(way):.0f}" for way in WAYS), *(
            interval(vars(cube.difference(*ways))) for ways in _COMPARED
        )]
        for name, cube in cubes.items()
    ]  # fmt: skip
    first = next(iter(cubes.values())).summary
    columns = ["LoRAs", "method", *first["rewards"], "weighted", "path KL", *first["watched"], "evaluations"]
    rows = [row for name, cube in cubes.items() for row in _rows(name, cube.summary)]
    notes = f"n = {first['rows'][0]['n']} images per row, weights 0.5 and 0.5; brackets: 95% bootstrap intervals."
    return f"{notes}\n\n{table([heads, *answers])}\n\n{table([columns, *rows])}\n"


_COMPARED = (("mpa", "merged"), ("merged", "soup_factors"), ("mpa", "soup_factors"))


def _rows(name: str, summary: dict) -> Iterator[list[str]]:
    for row in summary["rows"]:
        single = row["method"] == "basis"
        which = summary["rewards"][row["preference"].index(1.0)] if single else METHODS[row["method"]].title
        means = [f"{mean:+.3f}" for mean, _ in row["rewards"].values()]
        mean, error = row["weighted"]
        weighted = "" if single else f"{mean:+.3f} ± {error:.3f}"  # a single LoRA's is of its own reward alone
        watched = [f"{mean:.3f}" for mean, _ in row["watched"].values()]
        yield [name, which, *means, weighted, f"{row['kl']:.0f}", *watched, f"{row['evaluations']:.0f}"]


if __name__ == "__main__":
    main()
