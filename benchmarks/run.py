"""Runs cost.py with the Python of the first ComfyUI found: `python benchmarks/run.py [cost.py's options]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "comfyui"))

from host import HINT, python_of, workspaces  # noqa: E402


def main(arguments: list[str]) -> int:
    """cost.py's exit status."""
    runnable = [(root, python) for root in workspaces() if (python := python_of(root))]
    if not runnable:
        print(f"no ComfyUI found: the benchmark runs inside one; {HINT.split(',')[0]}", file=sys.stderr)
        return 2
    root, python = runnable[0]
    environment = os.environ | {"COMFYUI_PATH": str(root)}
    return subprocess.run([str(python), str(HERE / "cost.py"), *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
