"""The kernel of both products, interpreted on the CPU: the same as the two products."""

import os
import subprocess
import sys

import pytest

from . import host

pytest.importorskip("triton")
SCRIPT = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("kernel", sys.argv[1])
kernel = sys.modules["kernel"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
torch.manual_seed(0)

def drawn(*shape):
    return torch.randn(*shape)

def expected(out, x, down, up, columns, scales):
    hidden = x @ down[columns].T * (1 if scales is None else scales[columns])
    return out + 0.7 * hidden @ up[:, columns].T

for rows, tokens, width, height, rank, variants in [(2, 70, 40, 96, 4, 3), (3, 5, 200, 130, 20, 2)]:
    x, out, scales = drawn(rows, tokens, width), drawn(rows, tokens, height), torch.rand(variants * rank)
    down, up = drawn(variants * rank, width), drawn(height, variants * rank)
    columns = [slice(v * rank, (v + 1) * rank) for v in range(variants)]
    for tiles in (kernel.TILES, kernel.Tiles(tokens=16, width=32, columns=32, shares=3)):
        for own in (None, scales):
            for place in range(variants):
                came = kernel.add(out.clone(), x, down, up, rank, own, 0.7, place, tiles=tiles)
                torch.testing.assert_close(came, expected(out, x, down, up, columns[place], own), atol=1e-3, rtol=1e-4)
            places = torch.tensor([variants - 1, -1, 0][:rows])
            came = kernel.add(out.clone(), x, down, up, rank, own, 0.7, 0, places, tiles)
            for row, place in enumerate(places.tolist()):
                one = out[row] if place < 0 else expected(out[row], x[row], down, up, columns[place], own)
                torch.testing.assert_close(came[row], one, atol=1e-3, rtol=1e-4)
print("equal")
"""


def test_the_kernel_equals_the_two_products():
    path = host.REPOSITORY / "blend_core" / "network" / "kernel.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
