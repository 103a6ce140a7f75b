"""Runs this folder in every ComfyUI of this machine, with that ComfyUI's own Python: `python tests/comfyui/run.py`.

COMFYUI_PATH names the ComfyUI folders (default: ~/comfy/ComfyUI and ~/comfy/ComfyUI-*), COMFYUI_PYTHON the Python of
one that has no virtual environment of its own. Without arguments all tests run in the newest ComfyUI and those of PART
in the others, by as many processes as there are cores, four at most; `--all`: all tests in every ComfyUI; `--schemas`:
those of SCHEMAS in the newest. Other arguments are pytest's, for all tests of every ComfyUI; `--write-table` runs the
tests of the model families alone, and writes docs/models.md. Nothing is installed into ComfyUI: pytest goes into a
folder below build/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import coverage
from host import HINT, REPOSITORY, python_of, version_of, workspaces

HERE = Path(__file__).resolve().parent
TABLE = "(test_families and equals_merged_copies) or finds_its_weight"  # the tests that docs/models.md counts
PYTEST = ("pytest==8.4.2", "pytest-xdist==3.8.0")  # run on every Python that ComfyUI supports
PART = "exactness loading no_trace private server spellings stack workflows reloading newer_families key_maps changes"
"""The test modules that run in an older ComfyUI: what changed with ComfyUI before, and what every blend needs."""
SCHEMAS = "loading private workflows"
"""The test modules that hold the nodes' inputs, texts and help pages, and what we read of ComfyUI's own."""
_PROCESSES = ["-q", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]


def main(arguments: list[str]) -> int:
    """The first exit status that is not 0, or 0; also where no ComfyUI is found."""
    runnable = {root: python for root in workspaces() if (python := python_of(root))}
    if not runnable:
        why = "no ComfyUI found" if not workspaces() else "its Python was not found; also set COMFYUI_PYTHON"
        _print_loudly(f"ComfyUI tests SKIPPED: {why}, set COMFYUI_PATH=/path/to/ComfyUI", HINT)
        return 0
    if arguments == ["--write-table"]:
        return _write_table(runnable)
    newest = max(runnable, key=lambda root: _numbers(version_of(root)))
    if arguments == ["--schemas"]:
        return _run(newest, runnable[newest], ["-q", *_modules(SCHEMAS)])
    chosen = _PROCESSES if arguments == ["--all"] else arguments
    statuses = [_run(root, python, chosen or _all_or_part(root == newest)) for root, python in runnable.items()]
    return next((status for status in statuses if status), 0)


def _all_or_part(newest: bool) -> list[str]:
    """pytest's arguments where none are given."""
    return [*_PROCESSES, *([] if newest else _modules(PART))]


def _modules(names: str) -> list[str]:
    """pytest's choice of these test modules."""
    return ["-k", " or ".join(f"test_{name}.py" for name in names.split())]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _write_table(runnable: dict[Path, Path]) -> int:
    """docs/models.md from what passes now; the first exit status that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        reports = {version_of(root): Path(folder) / root.name for root in runnable}
        statuses = [
            _run(root, python, [*_PROCESSES, "-k", TABLE], {coverage.REPORT: str(Path(folder) / root.name)})
            for root, python in runnable.items()
        ]
        coverage.write(REPOSITORY / "docs" / "models.md", reports)
    return next((status for status in statuses if status), 0)


def _run(root: Path, python: Path, arguments: list[str], variables: Mapping[str, str] = MappingProxyType({})) -> int:
    print(f"== ComfyUI {version_of(root)} ({root}), {python}", flush=True)
    environment = os.environ | {
        "COMFYUI_PATH": str(root),
        "PYTHONPATH": str(_pytest_for(python)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **variables,
    }
    start = time.monotonic()
    # The repository's root is a package; as pytest's rootdir it would be imported under a name that ComfyUI uses.
    root_options = ["--rootdir", HERE.parent, "-c", REPOSITORY / "pyproject.toml", "-p", "no:cacheprovider"]
    command = [python, "-m", "pytest", HERE, *root_options, *arguments]
    status = subprocess.run(list(map(str, command)), cwd=REPOSITORY, env=environment).returncode
    print(f"== ComfyUI {version_of(root)}: exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
    return status


def _pytest_for(python: Path) -> Path:
    """A folder with PYTEST for `python`, made once per version of Python."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    folder = REPOSITORY / "build" / f"pytest-{version}"
    if not (folder / "xdist").is_dir():
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder, *PYTEST]
        subprocess.run([str(part) for part in (python, *install)], check=True)
    return folder


def _print_loudly(*lines: str) -> None:
    print("", "*" * 100, *lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
