"""The types hold: pyright in basic mode, as pyproject.toml sets it, finds nothing in blend_core and nodes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYRIGHT = shutil.which("pyright", path=Path(sys.executable).parent)


@pytest.mark.slow
@pytest.mark.skipif(PYRIGHT is None, reason="types SKIPPED: no pyright (pip install 'pyright[nodejs]')")
def test_pyright_finds_nothing():
    done = subprocess.run([PYRIGHT], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
