"""One file out of several LoRAs: read again it changes what they change together."""

from dataclasses import replace

import pytest
import torch
from diffusion_blend.blend_core import BlendError, LoRABank, Target, TargetIndex, read_adapter, resolve
from diffusion_blend.blend_core.adapters import Change, Delta, Factors
from diffusion_blend.blend_core.adapters.changes import Magnitude
from diffusion_blend.blend_core.adapters.exporting import exported
from safetensors.torch import save_file
from torch import nn

WIDTH = 8
LINEAR, CONV = Target("0", (WIDTH, WIDTH)), Target("1", (6, WIDTH, 3, 3))
TABLE = Target("2", (WIDTH,), parameter="scale")
SLICE = Target("0", (WIDTH, WIDTH), rows=(2, 3))
COEFFICIENTS = (0.6, -0.7)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(target, rank, seed):
    down = drawn(rank, *target.shape[1:], seed=seed)
    return Change(Factors(down, drawn(target.height, rank, seed=seed + 1), 0.7))


def matrix(target, change):
    """A change as it is added to the weight, flat."""
    return change.delta.built((target.height, *target.shape[1:]), change.delta.tensors).flatten(1)


def whole(target, seed, bias=None):
    shape = (target.height, *target.shape[1:])
    return Change(Delta("whole difference", {"diff": drawn(*shape, seed=seed)}, 0.5, shape), bias=bias)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(drawn(WIDTH, seed=3))

    def forward(self, x):
        return x * self.scale


class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.Conv2d(WIDTH, 6, 3, padding=1), Table())

    def forward(self, x):
        return self[1](self[2](self[0](x)).permute(0, 3, 1, 2))


ADAPTERS = {
    "pairs": ({LINEAR: pair(LINEAR, 2, 1), CONV: pair(CONV, 3, 3)}, {LINEAR: pair(LINEAR, 4, 5)}),
    "a slice": ({SLICE: pair(SLICE, 2, 1)}, {LINEAR: pair(LINEAR, 4, 5)}),
    "a pair and a difference with a bias": (
        {LINEAR: pair(LINEAR, 2, 1)},
        {LINEAR: whole(LINEAR, 5, drawn(WIDTH, seed=9))},
    ),
    "a difference of some rows with a bias": ({SLICE: whole(SLICE, 1, drawn(3, seed=8))}, {LINEAR: pair(LINEAR, 4, 5)}),
    "a parameter of no layer": ({TABLE: whole(TABLE, 1)}, {TABLE: whole(TABLE, 2), CONV: whole(CONV, 4)}),
}


def read(tensors, folder):
    save_file(tensors, folder / "merged.safetensors")
    shapes = {"0": (WIDTH, WIDTH), "1": (6, WIDTH, 3, 3)}
    index = TargetIndex({n: Target(n, shape) for n, shape in shapes.items()}, {"2.scale": TABLE})
    return resolve(read_adapter(folder / "merged.safetensors"), index)[0]


def output(adapters, selected, mixture=None):
    torch.manual_seed(0)
    attachment = LoRABank(adapters).attach(network := Network().requires_grad_(False))
    if mixture:
        attachment.mix({selected: mixture})
    with attachment.using([selected] * 2):
        return network(drawn(2, 5, 5, WIDTH, seed=7))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_file_is_the_sum(tmp_path, kind):
    adapters = ADAPTERS[kind]
    expected = output(adapters, 3, dict(enumerate(COEFFICIENTS, start=1)))
    merged = exported(adapters, COEFFICIENTS)
    assert merged.lost == 0 and merged.modules == len({target.module for adapter in adapters for target in adapter})
    torch.testing.assert_close(output([read(merged.tensors, tmp_path)], 1), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, output(adapters, 0))


def test_a_lower_rank_is_the_nearest_and_says_what_it_lost(tmp_path):
    adapters = ADAPTERS["pairs"]
    merged = exported(adapters, COEFFICIENTS, rank=2)
    down, up = merged.tensors["0.lora_down.weight"], merged.tensors["0.lora_up.weight"]
    assert (down.shape, up.shape, float(merged.tensors["0.alpha"])) == ((2, WIDTH), (WIDTH, 2), 2.0)
    assert merged.tensors["1.lora_down.weight"].shape == (2, WIDTH, 3, 3)
    sums = {
        target: sum(
            c * matrix(target, a[target])
            for c, a in zip(COEFFICIENTS, adapters, strict=True)
            if target in a
        )
        for target in (LINEAR, CONV)
    }
    values = {target: torch.linalg.svdvals(total) for target, total in sums.items()}
    away = torch.linalg.matrix_norm(sums[LINEAR] - up @ down)
    assert away == pytest.approx(float(values[LINEAR][2:].norm()), rel=1e-4)
    lost, every = torch.cat([v[2:] for v in values.values()]), torch.cat(list(values.values()))
    assert merged.lost == pytest.approx(float(lost.norm() / every.norm()), rel=1e-4)


def test_what_is_lost_is_a_share_of_whole_differences_too():
    pairs, difference = {CONV: pair(CONV, 3, 3)}, {LINEAR: whole(LINEAR, 5, drawn(WIDTH, seed=9))}
    part, both = exported([pairs], [1.0], rank=1).lost, exported([pairs, difference], [1.0, 1.0], rank=1).lost
    pair_norm = float(matrix(CONV, pairs[CONV]).norm())
    other = float(torch.cat([(0.5 * drawn(WIDTH, WIDTH, seed=5)).flatten(), drawn(WIDTH, seed=9)]).norm())
    assert both == pytest.approx(part * pair_norm / (pair_norm**2 + other**2) ** 0.5, rel=1e-4)


def test_a_coefficient_of_0_takes_no_rank():
    first, second = ADAPTERS["pairs"]
    assert exported((first, second), (1.0, 0.0)).tensors["0.lora_down.weight"].shape[0] == 2


def test_dora_is_refused_by_its_module():
    dora = replace(pair(LINEAR, 2, 1), magnitude=Magnitude(torch.ones(WIDTH), of_rows=True))
    with pytest.raises(BlendError, match=r"^0: DoRA came.*Leave that LoRA out"):
        exported([{LINEAR: dora}], [1.0])
