"""What the registry gets: comfy-cli accepts the pack, and packs what ComfyUI needs. No network needed."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFY = shutil.which("comfy", path=Path(sys.executable).parent)
MOST = 2 * 1024 * 1024  # bytes
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMFY is None, reason="package tests SKIPPED: no comfy-cli (pip install comfy-cli)"),
]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """comfy(command) in a copy of the files that git knows: its output, and the copy's folder."""
    folder, home = tmp_path_factory.mktemp("pack") / "diffusion-blend", tmp_path_factory.mktemp("home")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"package tests SKIPPED: no git checkout ({listed.stderr.strip()})")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all", "--force"], cwd=folder, check=True)
    # A home of its own: comfy-cli writes settings there, and asks in a person's whether it may send statistics.
    environment = os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "DO_NOT_TRACK": "1"}

    def run(*command):
        options = ["--skip-prompt", "--no-enable-telemetry"]
        done = subprocess.run(
            [COMFY, *options, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr, folder

    return run


def test_comfy_cli_finds_nothing_to_warn_of(comfy):
    said, _ = comfy("node", "validate")
    assert "All validation checks passed" in said
    assert "warning" not in said.lower()


def test_the_packed_zip_is_small_and_holds_what_comfyui_needs(comfy):
    _, folder = comfy("node", "pack")
    packed = folder / "node.zip"
    names = set(zipfile.ZipFile(packed).namelist())
    needed = {"__init__.py", "pyproject.toml", "LICENSE", "README.md"}
    for tree in ("blend_core", "nodes", "web", "locales", "example_workflows", "subgraphs"):
        files = {path.relative_to(folder).as_posix() for path in (folder / tree).rglob("*") if path.is_file()}
        assert files
        needed |= files
    assert needed <= names, sorted(needed - names)
    others = {"tests", "lab", "trainers", "pipelines", "docs", "benchmarks", ".github", "mkdocs.yml", "CITATION.cff"}
    assert not {name.split("/")[0] for name in names} & {*others, ".pre-commit-config.yaml"}
    assert packed.stat().st_size <= MOST
