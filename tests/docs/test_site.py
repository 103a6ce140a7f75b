"""The documentation: the site builds strictly, and the pages speak of what there is."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MKDOCS = shutil.which("mkdocs", path=Path(sys.executable).parent)
MOST_FUNCTIONS = 20  # from a weight to the prediction


def functions_of(file):
    """The functions of a file, methods as Class.name."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


def test_every_function_on_the_way_of_a_coefficient_exists():
    way = re.findall(r"^\| \d+ \| `(.+?)` \| `(.+?)` \|", ARCHITECTURE, re.MULTILINE)
    assert 10 < len(way) <= MOST_FUNCTIONS
    assert [(file, name) for file, name in way if name not in set(functions_of(file))] == []


def test_every_file_and_folder_that_the_page_names_exists():
    code = set(re.findall(r"`((?:[a-z_]+/)+(?:[\w.]+)?)`", ARCHITECTURE))
    assert len(code) > 20
    inner = (ROOT, ROOT / "blend_core", ROOT / "blend_core" / "adapters")
    assert sorted(path for path in code if not any((folder / path).exists() for folder in inner)) == []


def test_names_of_tables_that_a_newcomer_is_sent_to_exist():
    places = {
        "_STYLES": "blend_core/adapters/names/spelling.py",
        "_KINDS": "blend_core/adapters/kinds.py",
        "_FORMULAS": "blend_core/adapters/changes.py",
        "FORMULAS": "blend_core/rewards/image.py",
        "EVALUATIONS": "blend_core/estimators.py",
        "SELECTIONS": "nodes/samplers.py",
    }
    for name, file in places.items():
        assert f"`{name}" in ARCHITECTURE
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="site SKIPPED: no mkdocs (pip install -e '.[docs]')")
def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path):
    command = [MKDOCS, "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.parent.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("index.html")}
    assert {page for page in pages if page.name != "index"} <= built
    reference = (tmp_path / "site" / "reference" / "engine" / "index.html").read_text(encoding="utf-8")
    assert "blend_core.blend.Blend" in reference
