"""The toy studio's evaluation, and its figures in docs/results.md: `python -m diffusion_blend.lab.toy.results`.

The passes go below lab/toy/run/evaluation and go on where they were stopped. The words around the tables are written by
hand: read them again when the figures change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .make import ENVIRONMENT, RUN

DOCS = Path(__file__).parents[2] / "docs"
OUT = RUN / "evaluation"
PLOTS = ("pareto", "kl", "alignment")


def main(processes: int = 2) -> None:
    """Evaluate what is missing, then copy tables and plots."""
    command = [sys.executable, "-m", "diffusion_blend.lab", "evaluate", "toy", f"--processes={processes}"]
    subprocess.run([*command, f"--out={OUT}"], env=ENVIRONMENT, check=True)
    page = DOCS / "results.md"
    page.write_text(filled(page.read_text(encoding="utf8"), (OUT / "summary.md").read_text(encoding="utf8")), "utf8")
    for name in PLOTS:
        shutil.copy(OUT / f"{name}.png", DOCS / f"results_{name}.png")


def filled(page: str, tables: str, what: str = "tables") -> str:
    """The page with `tables` between the two marks of `what`. Raises ValueError for a page without them."""
    start, end = f"<!-- {what} -->", f"<!-- end of {what} -->"
    result = re.subn(f"({start}\n).*({end})", lambda m: f"{m[1]}{tables}{m[2]}", page, flags=re.S)
    if result[1] != 1:
        raise ValueError(f"docs/results.md has no place for the tables: {start} and {end}.")
    return result[0]


if __name__ == "__main__":
    main()
