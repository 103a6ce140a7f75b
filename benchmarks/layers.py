"""What one linear layer costs under each kind of file, as a ratio to the plain layer. Prints a table.

`python benchmarks/layers.py`: 1280 wide (SDXL's), two images of 1024 tokens, every ratio beside a plain call.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusion_blend.blend_core import LoRABank
from diffusion_blend.blend_core.adapters import Change, Delta, Factors, Magnitude, Target
from torch import Tensor, nn

LINE = "| {kind} | {median:.2f} ({lowest:.2f} to {highest:.2f}) | {held:.2f} | {transient:.2f} |"


def kinds(width: int, rank: int) -> dict[str, Change]:
    """One change of each kind."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.02 * torch.randn(shape, generator=generator)

    lora = Factors(draw(rank, width), draw(width, rank), 0.5)
    pairs = {f"hada_w{i}_{part}": draw(width, 32) if part == "a" else draw(32, width) for i in (1, 2) for part in "ab"}
    small = width // 16
    products = {"lokr_w1": draw(16, 16), "lokr_w2_a": draw(small, rank), "lokr_w2_b": draw(rank, small)}
    magnitudes = 1 + draw(width).abs()
    return {
        f"LoRA, rank {rank}": Change(lora),
        f"LoKr, 16 and rank {rank}": Change(Delta("LoKr", products, 1.0, (width, width), rank)),
        f"DoRA of rows, rank {rank}": Change(lora, Magnitude(magnitudes, of_rows=True)),
        f"DoRA of columns, rank {rank}": Change(lora, Magnitude(magnitudes, of_rows=False)),
        "LoHa, rank 32": Change(Delta("LoHa", pairs, 1.0, (width, width), 32)),
        "whole difference": Change(Delta("whole difference", {"diff": draw(width, width)}, 1.0, (width, width))),
    }


def ratios(bank: LoRABank, network: nn.Module, x: Tensor, rounds: int) -> list[float]:
    """Seconds of the changed layer over seconds of the plain one."""

    def seconds() -> float:
        started = time.perf_counter()
        network["layer"](x)
        return time.perf_counter() - started

    attachment, quotients = bank.attach(network), []
    for _ in range(rounds + 1):  # the first fills caches
        plain = seconds()
        with attachment.using([1] * len(x)):
            quotients.append(seconds() / plain)
    return quotients[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = nn.ModuleDict({"layer": nn.Linear(arguments.width, arguments.width)}).requires_grad_(False)
    target, x = Target("layer", (arguments.width, arguments.width)), torch.randn(2, arguments.tokens, arguments.width)
    print("| kind | times the plain layer | MB held | MB while it runs |\n| --- | --- | --- | --- |")
    for kind, change in kinds(arguments.width, arguments.rank).items():
        bank = LoRABank([{target: change}])
        with torch.inference_mode():
            quotients = ratios(bank, network, x, arguments.rounds)
        figures = {"median": statistics.median(quotients), "lowest": min(quotients), "highest": max(quotients)}
        sizes = {"held": bank.nbytes / 2**20, "transient": bank.transient_bytes / 2**20}
        print(LINE.format(kind=kind, **figures, **sizes))


if __name__ == "__main__":
    main()
