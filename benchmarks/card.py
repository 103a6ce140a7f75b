"""The prepared run on a machine with a CUDA card: does it run, what does it cost, where does the time go.

    python benchmarks/card.py              every step, from a folder that card_kit.py made
    python benchmarks/card.py costs        the named steps alone
    python benchmarks/card.py --rehearse   the same on a CPU, small, to find what the folder lacks

Each step is a process with a time limit of its own and prints its lines as they come, so that a cut leaves what came
before. Nothing is fetched: the folder holds the pack, a ComfyUI and wheels for the card's Python (see card_kit.py).
Logs and figures go to $OUT where that is set, else to out/ in the folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
KIT = PACK.parent
COMFYUI = KIT / "ComfyUI"
OUT = Path(os.environ.get("OUT") or KIT / "out")
SITE = Path("/tmp/diffusion-blend-site")
TESTS = PACK / "tests" / "comfyui"


@dataclass(frozen=True)
class CardStep:
    """One part of the run: its command after the Python, its limit in seconds, and what its environment has beside."""

    name: str
    command: Sequence[str]
    limit: int
    variables: Mapping[str, str]


def tested(name: str, modules: str, limit: int, workers: int, **variables: str) -> CardStep:
    """These test modules of tests/comfyui."""
    options = ["-q", "--tb=short", "--maxfail=40", "-p", "no:cacheprovider", "--rootdir", TESTS.parent]
    options += ["-c", PACK / "pyproject.toml", *(["-n", workers] if workers > 1 else [])]
    command = ["-m", "pytest", *(TESTS / f"test_{name}.py" for name in modules.split()), *options]
    return CardStep(name, list(map(str, command)), limit, variables)


KINDS = "exactness changes families"
EVALUATIONS = "one_per_step remembering msdda regions schedules fallback no_trace reloading"


def steps(device: str) -> list[CardStep]:
    """All of them, in order."""
    small = device == "cpu"
    workers = 1 if small else 10
    on = {"DIFFUSION_BLEND_DEVICE": device}
    benchmark = ["benchmarks/profiling.py", *(["--size", "small", "--steps", "2"] if small else [])]
    costs = ["benchmarks/cost.py", "--page", str(OUT / "costs.md"), "--out", str(OUT / "cost.json")]
    ways = ["exact, one after another", "exact, one batch", "merged", "stratified", "stratified, two products"]
    ways += ["ComfyUI's LoRA hooks", "m whole networks"]
    costs += ["--ways", *ways, "--copies", "2", "--rewards", "2", "3", "--steps", "2" if small else "6", "--rounds"]
    costs += ["1", "--dtypes", "float32"] if small else ["3", "--dtypes", "float16"]
    trained = ["benchmarks/trainer_steps.py", *(["--small"] if small else [])]
    halves = {dtype: {**on, "DIFFUSION_BLEND_DTYPE": dtype} for dtype in ("float16", "bfloat16")}
    return [
        CardStep("surroundings", ["benchmarks/card.py", "--surroundings"], 60, {}),
        tested("exactness, float32", f"{KINDS} {EVALUATIONS}", 150, workers, **on),
        *(tested(f"exactness, {dtype}", KINDS, 90, workers, **paths) for dtype, paths in halves.items()),
        tested("server", "server", 120, 1, **on),
        *([] if small else [CardStep("kernel", ["benchmarks/low_rank_kernel.py"], 120, {})]),
        CardStep("costs, SDXL", [*costs, "--networks", "SDXL"], 240, on),
        CardStep("costs, SD 1.5", [*costs, "--networks", "SD 1.5"], 120, on),
        CardStep("where the time goes", benchmark, 90, on),
        CardStep("trainer steps", trained, 120, on),
    ]


def main() -> int:
    """1 where some step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="words that the names of the steps to run begin with (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small sizes")
    parser.add_argument("--surroundings", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.surroundings:
        return surroundings()
    OUT.mkdir(parents=True, exist_ok=True)
    install()
    chosen = steps("cpu" if arguments.rehearse else "cuda")
    if arguments.steps:
        chosen = [step for step in chosen if step.name.startswith(tuple(arguments.steps))]
    failed = [step.name for step in chosen if not run(step, 20 if arguments.rehearse else 1)]
    print(f"== failed: {', '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


def install() -> None:
    """The wheels, into a folder of their own."""
    wheels = sorted(map(str, (KIT / "wheels").glob("*.whl")))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--no-cache-dir", "--upgrade", "--target", str(SITE), *wheels], check=True)


def run(step: CardStep, patience: int) -> bool:
    """Whether the step came to a good end within `patience` times its limit."""
    print(f"== {step.name}", flush=True)
    paths = [str(SITE), str(KIT / "stand_ins")]
    environment = os.environ | {
        "COMFYUI_PATH": str(COMFYUI),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OUT": str(OUT),
        **step.variables,
    }
    started = time.monotonic()
    command = ["timeout", "--kill-after=5", str(step.limit * patience), sys.executable, *step.command]
    log = OUT / f"{step.name.replace(', ', '-').replace(' ', '_')}.log"
    with log.open("w") as file:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=PACK, env=environment, **pipes)
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
        status = process.wait()
    print(f"== {step.name}: exit status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status == 0


def surroundings() -> int:
    """Print the card and the versions."""
    import torch

    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        gib = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        print(f"{torch.cuda.get_device_name()}, {gib}, CUDA {torch.version.cuda}")
    for name in ("triton", "transformers", "diffusers", "peft", "comfy_kitchen", "comfy_aimdo"):
        try:
            module = __import__(name)
            print(f"{name} {getattr(module, '__version__', '')}")
        except Exception as error:  # whatever a broken package raises is what is to be told
            print(f"{name}: {error}")
    print((COMFYUI / "comfyui_version.py").read_text().strip().splitlines()[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
