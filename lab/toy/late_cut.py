"""The late cut measured on the toy studio, into docs/results.md: `python -m diffusion_blend.lab.toy.late_cut`.

The passes go below lab/toy/run/late_cut and go on where they were stopped. The words around the tables are written by
hand: read them again when the figures change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from ..evaluation.methods import METHODS
from .make import ENVIRONMENT, RUN
from .results import DOCS, filled

WITHOUT_ORACLE = 'methods=["base", "kla", "merged_dial"]'
RUNS = {
    "20 steps, eta 1": (),
    "20 steps, eta 0": (
        "sampling.eta=0.0", WITHOUT_ORACLE, "alignments=[1.0, 1.4]", "untils=[1.0, 0.9]", "prompts.seeds=4",
    ),
    "50 steps, eta 1": ("sampling.steps=50", WITHOUT_ORACLE, "prompts.seeds=2"),
}  # fmt: skip


def main() -> None:
    """Evaluate what is missing, then copy the tables."""
    tables = [f"### {name}\n\n{tables_of(evaluated(name, settings))}" for name, settings in RUNS.items()]
    page = DOCS / "results.md"
    page.write_text(filled(page.read_text(encoding="utf8"), "\n\n".join(tables) + "\n", "the late cut"), "utf8")


def evaluated(name: str, settings: tuple[str, ...]) -> dict:
    """The summary of one run, as evaluation/summary.py has it."""
    out = RUN / "late_cut" / name.replace(", ", "_").replace(" ", "_")
    options = [f"--set={setting}" for setting in settings]
    command = [sys.executable, "-m", "diffusion_blend.lab", "evaluate", "toy", "toy_late_cut", "--device=cpu"]
    subprocess.run([*command, f"--out={out}", *options], env=ENVIRONMENT, check=True)
    return json.loads((out / "summary.json").read_text(encoding="utf8"))


def tables_of(summary: dict) -> str:
    """What the page shows of a run as Markdown: its points, then the dials at the path KL of DB-MPA."""
    oracle = any(row["oracle_share"] for row in summary["rows"])
    heads = ["method", "until", "alignment", *summary["rewards"], "weighted", "minus DB-MPA [95%]"]
    heads += ["of the oracle's gain [95%]"] * oracle + ["path KL", "evaluations"]
    rows = [
        [
            METHODS[row["method"]].title,
            f"{row['until']:g}",
            f"{row['alignment']:g}",
            *(f"{mean:+.3f}" for mean, _ in row["rewards"].values()),
            "{:+.3f} ± {:.3f}".format(*row["weighted"]),
            interval(row["against_mpa"]),
            *[interval(row["oracle_share"], "{:.0%}")] * oracle,
            "" if row["kl"] is None else f"{row['kl']:.1f}",
            f"{row['evaluations']:.0f}",
        ]
        for row in summary["rows"]
    ]
    at_kl = [row for row in summary["at_kl"] if row["of"] == "mpa"]
    level = f"weighted at {at_kl[0]['kl']:.1f} nats [95%]" if at_kl else ""
    equal = [
        [METHODS[row["method"]].title, f"{row['until']:g}", interval(row["weighted"]), interval(row["against_kla"])]
        for row in at_kl
    ]
    tables = [table([heads, *rows])]
    tables += [table([["method", "until", level, "minus DB-KLA [95%]"], *equal])] if equal else []
    return f"n = {summary['rows'][0]['n']} images per row.\n\n" + "\n\n".join(tables)


def interval(estimate: dict | None, form: str = "{:+.3f}") -> str:
    """A mean and the ends of its interval; nothing for none."""
    if estimate is None:
        return ""
    mean, low, high = (form.format(estimate[part]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows, headings first."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
