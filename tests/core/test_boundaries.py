"""Who imports whom: nodes -> blend_core <- pipelines <- trainers <- lab, and no host in the core."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "blend_core": {"blend_core"},
    "nodes": {"nodes", "blend_core"},
    "pipelines": {"pipelines", "blend_core"},
    "trainers": {"trainers", "pipelines", "blend_core"},
    "lab": {"lab", "trainers", "pipelines", "blend_core"},
}
COMFY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "execution", "server"}
LIBRARIES = {"diffusers", "peft", "transformers", "accelerate"}
PACK = {"diffusion_blend", "blend_core", "pipelines", "trainers", "lab"}  # `nodes` is ComfyUI's own
MATHS = (
    "blend",
    "parameterization",
    "gaussian",
    "schedules",
    "estimators",
    "diagnostics",
    "plan",
    "control_variates",
    "duels",
)
SOURCES = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py"))
IDS = [str(file.relative_to(ROOT)) for file in SOURCES]


def is_typing_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(file, within_functions=True):
    """(level, module, names) of every import of a file; `within_functions=False`: of those that importing it runs."""
    pending = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)
        elif within_functions or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_typing_only(node)):
            pending += ast.iter_child_nodes(node)


def absolute(file, **options):
    """The top-level modules a file imports absolutely."""
    return {module.split(".")[0] for level, module, _ in imports(file, **options) if level == 0}


def relative(file):
    """The paths, below the pack's root, that a file imports relatively."""
    folder = file.parent.relative_to(ROOT).parts
    for level, module, names in imports(file):
        if level:
            start = folder[: len(folder) - level + 1]
            parts = [*start, *filter(None, module.split("."))]
            yield from ((parts,) if module else ([*parts, name] for name in names))


def test_the_scan_sees_the_sources():
    assert len(SOURCES) > 30
    assert {"blend_core/blend.py", "nodes/host/apply.py", "pipelines/host.py"} <= {Path(i).as_posix() for i in IDS}
    found = sorted(relative(ROOT / "blend_core" / "network" / "execution.py"))
    assert found == [["blend_core", "network", "bank"]]
    assert "comfy" in absolute(ROOT / "nodes" / "host" / "apply.py")


def test_importing_the_core_imports_no_host():
    script = "import sys, diffusion_blend.blend_core; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert loaded & (COMFY | LIBRARIES) == set()


def test_importing_the_pack_itself_imports_nothing_heavy():
    script = "import sys, diffusion_blend; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} & (COMFY | LIBRARIES | {"torch"}) == set()


@pytest.mark.parametrize("file", SOURCES, ids=IDS)
def test_imports_follow_the_direction(file):
    package = file.relative_to(ROOT).parts[0]
    strangers = {parts[0] for parts in relative(file)} - MAY_IMPORT[package]
    assert strangers <= {"__version__"}  # the pack's root holds its version and ComfyUI's entry point


@pytest.mark.parametrize("file", SOURCES, ids=IDS)
def test_the_pack_is_imported_relatively_alone(file):
    # ComfyUI loads the pack under a name of its own, and owns a top-level `nodes`.
    assert absolute(file) & PACK == set()
    package = file.relative_to(ROOT).parts[0]
    own = {path.stem for path in (ROOT / "nodes").glob("*.py")} - {"__init__"}
    for level, module, names in imports(file):
        if level == 0 and module.split(".")[0] == "nodes":
            assert package == "nodes" and module == "nodes" and not own & set(names)


@pytest.mark.parametrize("file", SOURCES, ids=IDS)
def test_each_side_knows_its_own_host_only(file):
    package = file.relative_to(ROOT).parts[0]
    if package == "blend_core":
        assert absolute(file) & COMFY == set()
        # A learned reward may load its library on first use; nothing else in the core may know one.
        in_rewards = "rewards" in file.parts
        assert absolute(file, within_functions=not in_rewards) & LIBRARIES == set()
    elif package == "nodes":
        assert absolute(file) & LIBRARIES == set()
    else:
        assert absolute(file) & (COMFY - {"nodes"}) == set()


@pytest.mark.parametrize("name", [name for name in MATHS if (ROOT / "blend_core" / f"{name}.py").exists()])
def test_the_maths_imports_torch_and_maths_alone(name):
    file = ROOT / "blend_core" / f"{name}.py"
    assert absolute(file) - set(sys.stdlib_module_names) <= {"torch"}
    assert {parts[1] for parts in relative(file)} <= {*MATHS, "errors"}


@pytest.mark.parametrize("name", ["blend_core", "blend_core.adapters", "blend_core.rewards", "pipelines"])
def test_all_lists_every_public_name(name):
    if name == "pipelines":
        pytest.importorskip("diffusers")
    module = importlib.import_module(f"diffusion_blend.{name}")
    file = ROOT.joinpath(*name.split("."), "__init__.py")
    imported = {alias for level, _, names in imports(file) if level for alias in names}
    assert sorted(module.__all__) == sorted(imported)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
