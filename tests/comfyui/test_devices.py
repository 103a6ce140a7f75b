"""The engine on a card that is not there: tensors that know their device alone. One of another device would raise.

What reads a number off the card raises too, so nothing here waits for it.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .host import submodule

core = submodule("blend_core")
adapters = submodule("blend_core.adapters")
WIDTH, ROWS = 8, 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

if not torch.backends.cuda.is_built():
    pytest.skip("this torch is not built for CUDA, and knows no tensors on a card", allow_module_level=True)


class Network(nn.Module):
    """Every kind of layer that changes differ by."""

    def __init__(self, dtype):
        super().__init__()
        options = {"dtype": dtype, "device": "cuda"}
        self.enter = nn.Conv2d(3, WIDTH, 3, padding=1, **options)
        self.groups = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2, **options)
        self.group_norm = nn.GroupNorm(2, WIDTH, **options)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, **options) for _ in range(4))
        self.norm, self.scale = nn.LayerNorm(WIDTH, **options), nn.RMSNorm(WIDTH, **options)
        self.shift = nn.Parameter(torch.zeros(1, 1, WIDTH, **options))

    def forward(self, x):
        x = self.group_norm(self.groups(self.enter(x))).flatten(2).transpose(1, 2)
        x = self.norm(x) + self.shift
        mixed = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)
        return nn.functional.rms_norm(self.out(mixed), (WIDTH,), self.scale.weight)


def drawn(dtype, *shape):
    return torch.randn(*shape, dtype=dtype, device="cuda")


def factors(name, *shape, dtype, rank=2):
    down, up = drawn(dtype, rank, *shape[1:]), drawn(dtype, shape[0], rank)
    return {core.Target(name, shape): adapters.Change(adapters.Factors(down, up, 0.5))}


def low_rank(dtype, rank=2):
    linear = [factors(name, WIDTH, WIDTH, dtype=dtype, rank=rank) for name in ("q", "k", "v", "out")]
    linear.append(factors("enter", WIDTH, 3, 3, 3, dtype=dtype, rank=rank))
    return {target: change for part in linear for target, change in part.items()}


def changed(dtype):
    """LoHa, LoKr, DoRA of rows and of columns, whole differences, a bias."""
    square = (WIDTH, WIDTH)
    pair = adapters.Factors(drawn(dtype, 2, WIDTH), drawn(dtype, WIDTH, 2), 0.5)
    loha = {f"hada_w{i}_{part}": drawn(dtype, WIDTH, WIDTH) for i in (1, 2) for part in "ab"}
    lokr = {"lokr_w1": drawn(dtype, 2, 2), "lokr_w2": drawn(dtype, WIDTH // 2, WIDTH // 2)}
    one = {"diff": drawn(dtype, WIDTH)}
    magnitudes = drawn(dtype, WIDTH).abs()
    deltas = {
        "q": adapters.Change(adapters.Delta("LoHa", loha, 1.0, square, WIDTH)),
        "k": adapters.Change(adapters.Delta("LoKr", lokr, 1.0, square)),
        "v": adapters.Change(pair, adapters.Magnitude(magnitudes, of_rows=True)),
        "out": adapters.Change(pair, adapters.Magnitude(magnitudes, of_rows=False), drawn(dtype, WIDTH)),
    }
    norms = {core.Target(n, (WIDTH,)): adapters.Change(adapters.Delta("whole difference", one, 1.0, (WIDTH,)))
             for n in ("norm", "group_norm")}  # fmt: skip
    kernel = {"diff": drawn(dtype, WIDTH, 3, 3, 3)}
    norms[core.Target("enter", (WIDTH, 3, 3, 3))] = adapters.Change(
        adapters.Delta("whole difference", kernel, 1.0, (WIDTH, 3, 3, 3))
    )
    return {core.Target(name, square): change for name, change in deltas.items()} | norms


def read_alone(dtype):
    """Parameters that are read without their layer: one variant per pass."""
    changes = {}
    for name, parameter, shape in (
        ("scale", "weight", (WIDTH,)),
        ("groups", "weight", (WIDTH, WIDTH // 2, 3, 3)),
        ("", "shift", (1, 1, WIDTH)),
    ):
        delta = adapters.Delta("whole difference", {"diff": drawn(dtype, *shape)}, 1.0, shape)
        changes[core.Target(name, shape, parameter=parameter)] = adapters.Change(delta)
    return changes


@pytest.fixture(autouse=True)
def no_constants(monkeypatch):
    """Fake tensors of one number are copied for real, to a card that is not there."""
    monkeypatch.setattr("torch._subclasses.fake_tensor.CONSTANT_NUMEL_LIMIT", 0)
    # A network's first pass, and no other, reads back once whether its inputs stayed as they were.
    monkeypatch.setattr(submodule("blend_core.network.bank"), "refuse_written_inputs", lambda joint: None)


def run(bases, selection, dtype, twice=True):
    """A pass of rows under `selection`, and another."""
    with FakeTensorMode(), torch.inference_mode():
        network, x = Network(dtype), drawn(dtype, len(selection), 3, 4, 4)
        attachment = core.LoRABank([base(dtype) for base in bases]).attach(network, dtype)
        for _ in range(1 + twice):
            with attachment.using(selection, x.device):
                out = network(x)
        return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("selection", [[1] * ROWS, [2] * ROWS, [0, 1, 2, 1]], ids=str)
def test_every_kind_of_change(selection, dtype):
    high = partial(low_rank, rank=100)
    for bases in ((low_rank, low_rank), (low_rank, changed), (changed, low_rank), (low_rank, high)):
        out = run(bases, selection, dtype)
        assert (out.device.type, out.dtype, out.shape) == ("cuda", dtype, (ROWS, 16, WIDTH))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_that_are_read(dtype):
    out = run((read_alone, changed), [1] * ROWS, dtype)
    assert (out.device.type, out.dtype) == ("cuda", dtype)


def test_fused_steps():
    gaussian = submodule("blend_core.gaussian")
    with FakeTensorMode(), torch.inference_mode():
        predictions = [drawn(torch.float32, 2, 4, 4, 4) for _ in range(2)]
        mean, spread = gaussian.fused_step(predictions[0], predictions, 0.9, 0.5, [1.0, 0.5], [0.4, 0.6], "ve")
        assert mean.device.type == "cuda" and isinstance(spread, float)


@pytest.mark.parametrize("name", ["colourfulness", "contrast", "saturation", "sharpness", "symmetry"])
def test_rewards_of_pixels(name):
    reward = submodule("blend_core.rewards").load_reward(name)
    with FakeTensorMode(), torch.inference_mode():
        assert reward.score(torch.rand(2, 3, 8, 8, device="cuda"), ["", ""]).device.type == "cuda"
