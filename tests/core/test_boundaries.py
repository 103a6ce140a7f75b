"""Who imports whom: nodes -> blend_core <- pipelines <- trainers <- lab, and no host in the core.

A case per rule; a broken rule names every file that breaks it. The direction between rooms is a limit of figures.py.
"""

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from ..figures import Tree, imports_of

ROOT = Path(__file__).parents[2]

COMFY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "execution", "server"}
PUBLIC_TO_NODES = {"comfy_api", "folder_paths"}  # what a node is declared with; all else of ComfyUI is nodes/host's
MACHINERY = {
    "model_options", "model_patcher", "model_sampling", "current_patcher", "transformer_options", "diffusion_model",
    "get_wrappers", "add_wrapper_with_key", "set_additional_models", "object_patches", "patches", "load_device",
    "offload_device", "get_model_object", "memory_required", "inner_model",
}  # fmt: skip
LIBRARIES = {"diffusers", "peft", "transformers", "accelerate"}
PACK = {"diffusion_blend", "blend_core", "pipelines", "trainers", "lab"}  # `nodes` is ComfyUI's own
MATHS = (
    "blend",
    "parameterization",
    "gaussian",
    "schedules",
    "estimators",
    "diagnostics/__init__",
    "diagnostics/measures",
    "diagnostics/verdict",
    "diagnostics/ways",
    "plan",
    "control_variates",
    "duels",
)
NO_NOUNS = {"each", "own", "told", "found", "given", "taken", "there", "alone", "beside"}
MODULES = Tree().modules


@functools.cache
def nodes_of(path):
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def absolute(path, within_functions=True):
    """The top-level modules a file imports absolutely."""
    imports = MODULES[path].imports
    if not within_functions:
        imports = imports_of(ast.parse((ROOT / path).read_text(encoding="utf-8")), within_functions)
    return {module.split(".")[0] for level, module, _ in imports if level == 0}


def breaking(rule, room=""):
    """{path: what it should not import} of the files in a room, for `rule(path)`."""
    return {path: names for path in MODULES if path.startswith(room) and (names := rule(path))}


def test_the_scan_sees_the_sources():
    assert MODULES["blend_core/network/execution.py"].arrows == {"blend_core/network/bank.py"}
    assert any("comfy" in absolute(path) for path in MODULES if path.startswith("nodes/"))
    assert "transformers" in set().union(*(absolute(path) for path in MODULES if path.startswith("blend_core/rewards")))


@pytest.mark.slow
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


def test_rooms_are_imported_relatively():
    # ComfyUI loads the pack under a name of its own.
    assert breaking(lambda path: absolute(path) & PACK) == {}


def test_every_relative_import_names_a_module_that_is_there():
    """Those within functions too, which fail only when somebody calls them."""

    def lost(path):
        for level, module, _ in MODULES[path].imports:
            folder = (ROOT / path).parents[level - 1] if level else None
            place = folder.joinpath(*module.split(".")) if level and module else folder
            if place is not None and not (place.is_dir() or place.with_suffix(".py").is_file()):
                yield "." * level + module

    assert breaking(lambda path: list(lost(path))) == {}


def test_the_name_nodes_is_comfyuis_own():
    ours = {Path(path).stem for path in MODULES if path.startswith("nodes/")} - {"__init__"}

    def misused(path):
        of_nodes = [(module, names) for level, module, names in MODULES[path].imports if level == 0]
        of_nodes = [(module, names) for module, names in of_nodes if module.split(".")[0] == "nodes"]
        return [module for module, names in of_nodes if module != "nodes" or ours & set(names)]

    assert breaking(misused) == {}
    assert breaking(lambda path: absolute(path) & {"nodes"} if not path.startswith("nodes/") else set()) == {}


def test_the_core_knows_no_host():
    assert breaking(lambda path: absolute(path) & COMFY, "blend_core/") == {}


def test_the_core_knows_no_library_but_what_a_learned_reward_loads_on_first_use():
    def known(path):
        return absolute(path, within_functions=not path.startswith("blend_core/rewards/")) & LIBRARIES

    assert breaking(known, "blend_core/") == {}


def test_nodes_know_comfyui_and_no_library_of_the_other_side():
    assert breaking(lambda path: absolute(path) & LIBRARIES, "nodes/") == {}


@pytest.mark.parametrize("room", ["pipelines", "trainers", "lab"])
def test_the_other_side_knows_no_comfyui(room):
    assert breaking(lambda path: absolute(path) & COMFY, f"{room}/") == {}


def test_the_maths_imports_torch_and_maths_alone():
    allowed = {f"blend_core/{name}.py" for name in (*MATHS, "errors")}
    paths = [f"blend_core/{name}.py" for name in MATHS]
    assert set(paths) <= set(MODULES)
    assert {path: names for path in paths if (names := absolute(path) - set(sys.stdlib_module_names) - {"torch"})} == {}
    assert {path: names for path in paths if (names := MODULES[path].arrows - allowed)} == {}


@pytest.mark.parametrize("name", ["blend_core", "blend_core.adapters", "blend_core.rewards", "pipelines"])
def test_all_lists_every_public_name(name):
    if name == "pipelines":
        pytest.importorskip("diffusers")
    module = importlib.import_module(f"diffusion_blend.{name}")
    imports = MODULES[f"{name.replace('.', '/')}/__init__.py"].imports
    imported = {alias for level, _, names in imports if level for alias in names}
    assert sorted(module.__all__) == sorted(imported)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


def test_declarations_of_nodes_leave_comfyuis_machinery_to_the_host_folder():
    def touched(path):
        nodes = nodes_of(path)
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        return (absolute(path, within_functions=False) & COMFY - PUBLIC_TO_NODES) | attributes & MACHINERY

    assert breaking(lambda path: touched(path) if Path(path).parent == Path("nodes") else set(), "nodes/") == {}


@pytest.mark.parametrize("room", ["nodes", "blend_core"])
def test_private_attributes_of_others_stand_in_one_file(room):
    assert {Path(path).name for path in breaking(private_of_others, f"{room}/")} == {"private.py"}


def private_of_others(path):
    """The private attributes a file reads that no class or function of it has."""
    nodes = nodes_of(path)
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    members = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    members |= {
        node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    names = {node.attr for node in attributes} - members
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_pip_installs_every_folder_with_python_in_it():
    if sys.version_info < (3, 11):
        tomllib = pytest.importorskip("tomli")
    else:
        import tomllib
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {module.folder.replace("/", ".") for module in MODULES.values()}
    assert sorted(packages) == sorted({"diffusion_blend", *(f"diffusion_blend.{folder}" for folder in folders)})


def test_no_two_classes_have_one_name():
    benchmarks = [file.relative_to(ROOT).as_posix() for file in (ROOT / "benchmarks").rglob("*.py")]
    places = {}
    for path in [*MODULES, *benchmarks]:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def bound_names(node):
    """The names that a node gives a value to."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name


@pytest.mark.parametrize("room", ["blend_core", "nodes", "pipelines", "trainers", "lab", "benchmarks", "tests"])
def test_variables_are_named_by_nouns(room):
    def wrong(file):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        return {name for node in nodes for name in bound_names(node) if name.strip("_") in NO_NOUNS}

    files = {file.relative_to(ROOT).as_posix(): file for file in (ROOT / room).rglob("*.py")}
    assert files
    assert {path: names for path, file in files.items() if (names := wrong(file))} == {}
