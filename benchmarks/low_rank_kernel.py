"""A low-rank addition by two products and by blend_core/network/kernel.py, on a CUDA card with Triton.

    python benchmarks/low_rank_kernel.py

Prints, for layers of SD 1.5's, SDXL's and a video model's shape, microseconds on the GPU of the plain layer and of
either addition (from captured graphs, so that launches do not count), microseconds that Python and the launches take,
and how far each addition is from float64. Then the same for other tiles of the kernel.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from triton.testing import do_bench_cudagraph

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = "diffusion_blend"
SHAPES = {  # (rows, tokens, width in, width out)
    "SDXL, 1280 wide": (2, 1024, 1280, 1280),
    "SDXL, 640 wide": (2, 4096, 640, 640),
    "SDXL, prompt": (2, 77, 2048, 1280),
    "SD 1.5, 320 wide": (2, 4096, 320, 320),
    "SD 1.5, 1280 wide": (2, 256, 1280, 1280),
    "video, 5120 wide": (1, 32760, 5120, 5120),
}
TRIED = [
    {}, {"shares": 1}, {"shares": 2}, {"shares": 8}, {"tokens": 32}, {"tokens": 128}, {"width": 64}, {"width": 256},
    {"columns": 128}, {"tokens": 32, "shares": 2}, {"tokens": 32, "width": 256, "shares": 2}, {"warps": 8},
]  # fmt: skip


def load_pack() -> None:
    """The repository as a package, where it is not installed."""
    if importlib.util.find_spec(PACK) is None:
        init, place = REPOSITORY / "__init__.py", [str(REPOSITORY)]
        spec = importlib.util.spec_from_file_location(PACK, init, submodule_search_locations=place)
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACK])


def microseconds(call) -> float:
    """The GPU's time of one call, median."""
    return 1000 * do_bench_cudagraph(call, rep=30, return_mode="median")


def launching(call) -> float:
    """Microseconds that the host takes for one call, median of 5 times 50."""
    torch.cuda.synchronize()
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(50):
            call()
        durations.append((time.perf_counter() - started) / 50)
        torch.cuda.synchronize()
    return 1e6 * statistics.median(durations)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    arguments = parser.parse_args()
    load_pack()
    kernel = importlib.import_module(f"{PACK}.blend_core.network.kernel")
    dtype = getattr(torch, arguments.dtype)
    print("| layer | rank | rows | layer | products | kernel | host: products | host: kernel | error | of products |")
    for rank in arguments.ranks:
        for name, (rows, tokens, width, height) in SHAPES.items():
            for mixed in (False, True):
                torch.manual_seed(0)
                x = torch.randn(rows, tokens, width, device="cuda", dtype=dtype)
                weight = torch.randn(height, width, device="cuda", dtype=dtype) / width**0.5
                down = torch.randn(2 * rank, width, device="cuda", dtype=dtype) / width**0.5
                up = torch.randn(height, 2 * rank, device="cuda", dtype=dtype)
                out = F.linear(x, weight)
                places = torch.arange(rows, device="cuda") % 2 if mixed else None
                mask = torch.zeros(rows, 1, 2 * rank, device="cuda", dtype=dtype)
                for row in range(rows):
                    mask[row, :, (row % 2) * rank : (row % 2 + 1) * rank] = 1

                def products(out=out, x=x, down=down, up=up, mixed=mixed, mask=mask, rank=rank):
                    if mixed:
                        hidden = F.linear(x, down) * mask
                        return out.view(-1, out.shape[-1]).addmm_(hidden.view(-1, 2 * rank), up.t(), alpha=0.5)
                    hidden = F.linear(x, down[:rank])
                    return out.view(-1, out.shape[-1]).addmm_(hidden.view(-1, rank), up[:, :rank].t(), alpha=0.5)

                def fused(out=out, x=x, down=down, up=up, places=places, rank=rank, tiles=kernel.TILES):
                    return kernel.add(out, x, down, up, rank, None, 0.5, 0, places, tiles)

                if places is None:
                    delta = 0.5 * x.double() @ down[:rank].double().T @ up[:, :rank].double().T
                else:
                    delta = 0.5 * ((x.double() @ down.double().T) * mask.double()) @ up.double().T
                errors = []
                for way in (fused, products):
                    came = out.clone()
                    way(out=came)
                    errors.append(((came.double() - out.double() - delta).norm() / delta.norm()).item())
                scaled = out.clone()  # timed on a tensor of its own, which grows
                base = microseconds(lambda x=x, weight=weight: F.linear(x, weight))
                times = [microseconds(lambda way=way, scaled=scaled: way(out=scaled)) for way in (products, fused)]
                host = [launching(lambda way=way, scaled=scaled: way(out=scaled)) for way in (products, fused)]
                figures = [f"{figure:.1f}" for figure in (base, *times, *host)] + [f"{error:.1e}" for error in errors]
                rows_are = "mixed" if mixed else "one"
                print(f"| {name} | {rank} | {rows_are} | {' | '.join(figures)} |", flush=True)
                if rank == arguments.ranks[0] and not mixed and not name.startswith("video"):
                    for change in TRIED[1:]:
                        tiles = replace(kernel.TILES, **change)
                        call = partial(fused, out=scaled, tiles=tiles)
                        try:
                            took = microseconds(call)
                        except Exception as error:  # tiles that do not fit the card
                            print(f"    {change}: {type(error).__name__}", flush=True)
                            continue
                        print(f"    {change}: {took:.1f} us", flush=True)


if __name__ == "__main__":
    main()
