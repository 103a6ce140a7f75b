"""The late cut measured on the toy studio, into docs/results.md: `python -m diffusion_blend.lab.toy.late_cut`.

The passes go below lab/toy/run/late_cut and go on where they were stopped. The words around the tables are written by
hand: read them again when the figures change.
"""

from __future__ import annotations

import subprocess
import sys

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
    tables = [f"### {name}\n\n{evaluated(name, settings)}" for name, settings in RUNS.items()]
    page = DOCS / "results.md"
    page.write_text(filled(page.read_text(encoding="utf8"), "\n".join(tables), "the late cut"), "utf8")


def evaluated(name: str, settings: tuple[str, ...]) -> str:
    """The tables of one run, as Markdown."""
    out = RUN / "late_cut" / name.replace(", ", "_").replace(" ", "_")
    options = [f"--set={setting}" for setting in settings]
    command = [sys.executable, "-m", "diffusion_blend.lab", "evaluate", "toy", "toy_late_cut", "--device=cpu"]
    subprocess.run([*command, f"--out={out}", *options], env=ENVIRONMENT, check=True)
    return (out / "summary.md").read_text(encoding="utf8")


if __name__ == "__main__":
    main()
