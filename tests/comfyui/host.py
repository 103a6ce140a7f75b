"""Finding a ComfyUI on this machine, and entering it. Standard library only: run.py uses it where pytest is not yet."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
PACK = "custom_nodes_x_diffusion-blend"  # ComfyUI mangles a pack's path into its module name in this way
NEEDED = ("torch", "torchsde", "aiohttp", "av")  # among ComfyUI's requirements; another Python lacks one of them
DEVICE = os.environ.get("DIFFUSION_BLEND_DEVICE", "cpu")  # where networks compute: cpu or cuda
DTYPE = os.environ.get("DIFFUSION_BLEND_DTYPE", "float32")  # of their weights
HINT = "set COMFYUI_PATH to a ComfyUI folder that runs, and start the tests with: python tests/comfyui/run.py"


def workspaces() -> list[Path]:
    """The ComfyUI folders to test against: COMFYUI_PATH (several with the path separator), else those in ~/comfy."""
    named = os.environ.get("COMFYUI_PATH", "")
    if named:
        roots = [Path(name).expanduser().resolve() for name in named.split(os.pathsep) if name]
    else:
        home = Path("~/comfy").expanduser()
        roots = [home / "ComfyUI", *sorted(home.glob("ComfyUI-*"))]
    return [root for root in roots if (root / "comfy" / "cli_args.py").is_file()]


def python_of(root: Path) -> Path | None:
    """The Python that runs the ComfyUI at `root`: its virtual environment's, else COMFYUI_PYTHON."""
    inside = ("bin/python", "Scripts/python.exe")
    candidates = [root / venv / python for venv in (".venv", "venv") for python in inside]
    if named := os.environ.get("COMFYUI_PYTHON"):
        candidates.append(Path(named).expanduser())
    return next((python for python in candidates if python.is_file()), None)


def version_of(root: Path) -> str:
    """ComfyUI's version, such as 0.28.0."""
    match = re.search(r"""__version__\s*=\s*["'](.+?)["']""", (root / "comfyui_version.py").read_text())
    return match[1] if match else "of unknown version"


def obstacle() -> str | None:
    """Why this Python cannot run the tests, or None."""
    if not workspaces():
        return f"no ComfyUI found: {HINT}"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"this is not ComfyUI's Python (no {', '.join(missing)}): {HINT}"
    return None


def enter(root: Path) -> None:
    """Make `root` importable as ComfyUI's own process has it: first on sys.path, on DEVICE, without the repository."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY]
    sys.path.insert(0, str(root))
    from comfy.cli_args import args

    args.cpu = DEVICE == "cpu"  # before any other comfy import, which would look for a GPU
    # As main.py does: ComfyUI's nodes.py puts a folder with another `utils` ahead of this one on sys.path.
    importlib.import_module("utils.extra_config")
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be float32, on a GPU as well


def load_pack() -> ModuleType:
    """The repository as ComfyUI loads a custom node: its __init__.py under a mangled name, nothing on sys.path."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
        )
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACK])
    return sys.modules[PACK]


def submodule(name: str) -> ModuleType:
    """A module of the pack, such as blend_core."""
    load_pack()
    return importlib.import_module(f"{PACK}.{name}")


def load_nodes() -> dict[str, type]:
    """The pack's node classes by class name, from the entry point that ComfyUI calls."""

    async def listed():
        extension = await load_pack().comfy_entrypoint()
        return await extension.get_node_list()

    return {node.__name__: node for node in asyncio.run(listed())}
