"""Runs a benchmark with the Python of the first ComfyUI found: `python benchmarks/run.py cost [options]`.

The benchmarks that need a ComfyUI: cost, launches, profiling.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "comfyui"))

from host import HINT, python_of, workspaces  # noqa: E402


def main(arguments: list[str]) -> int:
    """The benchmark's exit status."""
    benchmark = HERE / f"{arguments[0] if arguments else 'cost'}.py"
    if not benchmark.is_file():
        print(f"there is no benchmark {benchmark.stem}: cost, launches or profiling", file=sys.stderr)
        return 2
    runnable = [(root, python) for root in workspaces() if (python := python_of(root))]
    if not runnable:
        print(f"no ComfyUI found: the benchmark runs inside one; {HINT.split(',')[0]}", file=sys.stderr)
        return 2
    root, python = runnable[0]
    environment = os.environ | {"COMFYUI_PATH": str(root)}
    return subprocess.run([str(python), str(benchmark), *arguments[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
