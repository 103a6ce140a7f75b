"""A real ComfyUI with the pack, and tiny files under the names of the models that the example workflows want."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from ..comfyui import host
from ..comfyui.server import Server


def workspace() -> Path | None:
    """The first ComfyUI of this machine that can run."""
    return next((root for root in host.workspaces() if host.python_of(root)), None)


@contextlib.contextmanager
def served(root: Path, folder: Path, options: tuple[str, ...] = (), models: bool = True):
    """The running server; `folder` does not exist yet.  models: whether it has files."""
    python = host.python_of(root)
    if models:
        write_models(root, folder / "models")
    with Server(folder, python, root, options) as server:
        yield server


def write_models(root: Path, folder: Path) -> None:
    """The tiny files, below a server's folder of models."""
    environment = os.environ | {
        "COMFYUI_PATH": str(root),
        "PYTHONPATH": str(host.REPOSITORY / "tests"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [host.python_of(root), "-m", "comfyui.example_models", folder]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
