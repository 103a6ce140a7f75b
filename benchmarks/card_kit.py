"""The folder that card.py runs from, for a machine without a network: `make card-kit`.

    build/card/pack       what is tracked of this repository and what a run needs
    build/card/ComfyUI    the ComfyUI that the tests find, without its editor, models and environment
    build/card/wheels     what ComfyUI asks for beside the packages of a CUDA image, for that image's Python
    build/card/stand_ins  a module in the place of av, whose wheel is large and which only video nodes need
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "comfyui"))

from host import HINT, version_of, workspaces  # noqa: E402

KIT = REPOSITORY / "build" / "card"
MOST = 60 * 2**20  # bytes
PACK = ("__init__.py", "pyproject.toml", "blend_core", "nodes", "pipelines", "trainers", "lab", "benchmarks", "tests",
        "subgraphs")  # fmt: skip
PACK_LEFT_OUT = ("studio", "browser", "docs", "__pycache__", "out", "recording.json")
COMFYUI = [
    "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "app", "middleware", "utils",
    "api_server", "alembic_db", "alembic.ini", "comfyui_version.py", "cuda_malloc.py", "execution.py",
    "folder_paths.py", "hook_breaker_ac10a0.py", "latent_preview.py", "main.py", "node_helpers.py", "nodes.py",
    "protocol.py", "server.py", "pyproject.toml", "requirements.txt",
]  # fmt: skip
PINNED = ("comfy-kitchen", "comfy-aimdo")  # as ComfyUI's requirements have them
WHEELS = [
    "torchsde", "trampoline", "annotated-types", "alembic", "SQLAlchemy", "greenlet", "Mako", "pydantic",
    "pydantic-core", "pydantic-settings", "python-dotenv", "typing-inspection", "simpleeval", "blake3", "spandrel",
    "kornia", "kornia-rs", "diffusers", "importlib-metadata", "zipp",
]  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
AV = '''"""In the place of av, which only nodes of video and sound need: every name is a class that does nothing."""

import sys
import types


class _Nothing(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


for name in ("container", "subtitles", "subtitles.stream", "video", "video.reformatter", "codec", "audio", "error"):
    sys.modules[f"av.{name}"] = _Module(f"av.{name}")
__path__ = []


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return sys.modules.get(f"av.{name}") or _Nothing(name, (), {})
'''


def main() -> int:
    """Build it, and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the version of the card's Python (default: 3.12)")
    arguments = parser.parse_args()
    roots = workspaces()
    if not roots:
        print(f"no ComfyUI found: {HINT}", file=sys.stderr)
        return 2
    shutil.rmtree(KIT, ignore_errors=True)
    copy(REPOSITORY, KIT / "pack", PACK, PACK_LEFT_OUT)
    copy(roots[0], KIT / "ComfyUI", COMFYUI, ("__pycache__", "nodes_glsl.py"))  # that file needs a package for windows
    for name in ("models", "custom_nodes", "input", "output", "front_end"):
        (KIT / "ComfyUI" / name).mkdir()
    (KIT / "ComfyUI" / "front_end" / "index.html").touch()
    (KIT / "stand_ins" / "av").mkdir(parents=True)
    (KIT / "stand_ins" / "av" / "__init__.py").write_text(AV)
    download(roots[0], arguments.python)
    size = sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file())
    print(f"{KIT}: {size / 2**20:.1f} MiB, ComfyUI {version_of(roots[0])}, wheels for Python {arguments.python}")
    if size > MOST:
        print(f"more than the {MOST / 2**20:.0f} MiB that may be carried: leave something out", file=sys.stderr)
        return 1
    return 0


def copy(source: Path, target: Path, names: tuple[str, ...] | list[str], left_out: tuple[str, ...]) -> None:
    """The named files and folders of `source`, without what the patterns `left_out` name."""
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns(*left_out))
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


def download(root: Path, python: str) -> None:
    """The wheels, without what they need in turn."""
    requirements = (root / "requirements.txt").read_text().split()
    pinned = [line for line in requirements if line.startswith(PINNED)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command += ["--dest", str(KIT / "wheels")]
    native = [option for platform in PLATFORMS for option in ("--platform", platform)]
    (kitchen,) = (line for line in pinned if line.startswith("comfy-kitchen"))
    others = [line for line in pinned if line != kitchen]
    subprocess.run([*command, "--platform", "any", kitchen], check=True)  # without CUDA kernels: a hundredth in size
    subprocess.run([*command, *native, *others, *WHEELS], check=True)


if __name__ == "__main__":
    sys.exit(main())
