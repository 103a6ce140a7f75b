"""What a blend launches beside the network, per adapted layer and step: on attentions in the number of SDXL's."""

import pytest
import torch
from diffusion_blend.blend_core import LoRABank, Target
from diffusion_blend.blend_core.adapters import Change, Factors
from diffusion_blend.blend_core.estimators import exact, merged, stratified
from diffusion_blend.blend_core.network import low_rank
from diffusion_blend.blend_core.network.execution import evaluate_variants
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

BLOCKS, WIDTH, PROMPT, RANK = 70, 8, 12, 2
FREE = {"empty", "empty_strided", "empty_like", "detach", "alias"}
READ_BACK = {"_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero"}
pytestmark = pytest.mark.slow
WAYS = {"exact, one batch": (exact, 2, 2.0), "stratified": (stratified, 1, 1.4), "merged": (merged, 1, 1.4)}


class Attention(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(WIDTH), Attention(WIDTH)
        self.norm2, self.attn2 = nn.LayerNorm(WIDTH), Attention(PROMPT)

    def forward(self, x, prompt):
        hidden = self.norm1(x)
        x = x + self.attn1(hidden, hidden)
        return x + self.attn2(self.norm2(x), prompt)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x, prompt):
        for block in self.blocks:
            x = block(x, prompt)
        return x


class Launches(TorchDispatchMode):
    """Counts operations that a device would be asked for, and numbers that are read back from it."""

    def __init__(self):
        super().__init__()
        self.count = self.read_back = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name in FREE)
        self.read_back += name in READ_BACK
        return func(*args, **(kwargs or {}))


def counted(call):
    with Launches() as launches:
        call()
    return launches.count, launches.read_back


def adapters_of(network):
    """Two LoRAs of all its linear layers."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    return [
        {
            Target(name, tuple(layer.weight.shape)): Change(
                Factors(torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK) / 10, 0.5)
            )
            for name, layer in layers.items()
        }
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    network = Network().requires_grad_(False)
    adapters = adapters_of(network)
    return network, adapters, len(adapters[0])


def step_of(world, way):
    """(one step of the way, on a bank that has run two of them, the network without it)."""
    network, adapters, _ = world
    estimator, group, _ = WAYS[way]
    bank = LoRABank(adapters)
    plan, attachment = estimator([0.0, 0.4, 0.6], 4, [1]), bank.attach(network, torch.float32)
    attachment.mix(plan.mixtures)
    inputs = {"x": torch.randn(2, 4, WIDTH), "prompt": torch.randn(2, 3, PROMPT)}

    def evaluate(variants):
        rows = 2  # conditional and unconditional
        return evaluate_variants(lambda inputs, _: network(**inputs), inputs, rows, variants, attachment, group)

    def run(step):
        with torch.inference_mode():
            return plan(evaluate, step)

    first = [run(step) for step in range(4)]
    assert all(torch.equal(before, run(step)) for step, before in enumerate(first)), "as in the first pass"
    return run, lambda: network(**inputs)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_launches_no_more_than_its_goal_and_reads_nothing_back(world, way):
    step, plain = step_of(world, way)
    with torch.inference_mode():
        base, _ = counted(plain)
    count, read_back = counted(lambda: step(3))
    assert read_back == 0
    assert (count - base) / world[2] <= WAYS[way][2]


class OneLaunch:
    """In the place of kernel.py, which no CPU runs: a launch that leaves `out` as it is."""

    @staticmethod
    def add(out, *_):
        return out.add_(0)


@pytest.mark.parametrize("way", WAYS)
def test_with_the_kernel_a_step_launches_at_most_one_more_per_layer(world, way, monkeypatch):
    monkeypatch.setattr(low_rank, "kernel_takes", lambda x, rank: x.dim() > 2)
    monkeypatch.setattr(low_rank, "_kernel", lambda: OneLaunch)
    step, plain = step_of(world, way)
    with torch.inference_mode():
        base, _ = counted(plain)
    assert (counted(lambda: step(3))[0] - base) / world[2] <= 1.0
