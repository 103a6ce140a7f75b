"""What a blend costs, beside the plain sampler, ComfyUI's own LoRA hooks, and m whole networks.

Run by `make bench` with a ComfyUI's own Python, on a GPU where there is one: networks of the shape of Stable Diffusion
1.5 and XL with random weights. Writes benchmarks/out/cost.json and the tables of docs/costs.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser()
OUT = REPOSITORY / "benchmarks" / "out" / "cost.json"
PAGE = REPOSITORY / "docs" / "costs.md"
NAMES = ("SD 1.5", "SDXL")
PACK = "blend_pack"


def arguments() -> argparse.Namespace:
    """The command line; None where the device decides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    decided = "(default: real, 20 steps, 2 3 4 on a GPU; small, 3 steps, 2 4 on a CPU)"
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dtypes", nargs="+", help="torch's names (default: float16 bfloat16; float32 on a CPU)")
    parser.add_argument("--size", choices=("real", "small"), help=decided)
    parser.add_argument("--latent", type=int, help="latent pixels of each side (default: 64 and 128, small 8)")
    parser.add_argument("--steps", type=int, help=decided)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, help="runs of every way (default: 5, on a CPU 3)")
    parser.add_argument("--rewards", type=int, nargs="+", help=f"numbers of LoRAs, 2 or more {decided}")
    parser.add_argument(
        "--copies", type=int, default=4, help="the most whole networks to hold; fewer where memory is short"
    )
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ways", nargs="+", help="some of the rows alone")
    parser.add_argument("--page", type=Path, default=PAGE, help="the Markdown to write")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON to write; what it holds already stays")
    parser.add_argument("--add", type=Path, nargs="+", help="measure nothing: add what these files of other runs hold")
    values = parser.parse_args()
    if values.rewards and min(values.rewards) < 2:
        parser.error(f"--rewards has {min(values.rewards)}, expected 2 or more: one LoRA is no blend. Leave it out.")
    return values


def load_host() -> None:
    """ComfyUI's modules on its path, on the GPU where there is one, and our pack as ComfyUI loads it."""
    sys.path.insert(0, str(COMFYUI))
    sys.argv = sys.argv[:1]
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        PACK, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])


def main() -> None:
    """Measure and write; after every way, so that a stopped run keeps what it measured."""
    values = vars(arguments())
    load_host()
    import comfy.model_management

    parts = f"{PACK}.benchmarks.costs"
    measuring, figures = (importlib.import_module(f"{parts}.{name}") for name in ("measuring", "figures"))
    kept = figures.Figures.of(values.pop("out"), values.pop("page"))
    if files := values.pop("add"):
        for file in files:
            kept.add_file(file)
        return
    left_open = measuring.DEFAULTS[comfy.model_management.get_torch_device().type]
    networks = values.pop("networks")
    chosen = left_open | {name: value for name, value in values.items() if value is not None or name == "latent"}
    dtypes = chosen.pop("dtypes")
    for section in measuring.sections(networks, dtypes, measuring.Settings(**chosen)):
        kept.add_section(section)
        last = section["rows"][-1]
        print(f"{section['network']}, m = {last['m']}, {last['mode']}: {last['ratio']:.3f} times plain", flush=True)


if __name__ == "__main__":
    main()
