"""A module's changes reach whoever calls it and whoever reads its parameters, and nothing of them stays."""

import copy

import pytest
import torch
from diffusion_blend.blend_core import BlendError, LoRABank, Target
from diffusion_blend.blend_core.adapters import Change, Delta, Factors
from diffusion_blend.blend_core.network.deferred import Deferred
from torch import nn

WIDTH = 8


class Block(nn.Module):
    """Reads its norm and its second projection without calling them, as fused kernels do, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.RMSNorm(WIDTH)
        self.fused = nn.Linear(WIDTH, WIDTH)
        self.modulation, self.shift = nn.Parameter(torch.ones(1, WIDTH)), nn.Parameter(torch.tensor(0.1))
        self.reused = False

    def forward(self, x):
        assert self.fused.weight.dtype == x.dtype and self.fused.weight.shape == (WIDTH, WIDTH)
        x = x * self.modulation + self.shift
        q, k = self.q(x), self.k(x)
        if self.reused:
            x.mul_(0.5)
        v = self.v(x)
        q = nn.functional.rms_norm(q, (WIDTH,), self.norm.weight)
        x = self.out(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)
        return nn.functional.linear(x, self.fused.weight, self.fused.bias)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).double().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def drawn(*shape, seed=0):
    return 0.5 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(name, seed=1, rank=2):
    factors = Factors(drawn(rank, WIDTH, seed=seed), drawn(WIDTH, rank, seed=seed + 1), 0.7)
    return {Target(name, (WIDTH, WIDTH)): Change(factors)}


def difference(name, parameter, *shape, seed=5):
    change = Change(Delta("whole difference", {"diff": drawn(*shape, seed=seed)}, 1.0, shape))
    return {Target(name, shape, parameter=parameter): change}


def merged(network, adapter):
    """The network with everything in its parameters."""
    network = copy.deepcopy(network)
    for target, change in adapter.items():
        module = network.get_submodule(target.module)
        parts, factors = change.delta.tensors, change.factors
        delta = parts["diff"] if factors is None else factors.scale * parts["up"] @ parts["down"]
        getattr(module, target.parameter).data += delta
    return network


CHANGES = {
    "a layer that is called": pair("0.q"),
    "a layer whose weight is read": pair("1.fused"),
    "a norm whose weight is read": difference("0.norm", "weight", WIDTH),
    "a parameter of no layer": difference("0", "modulation", 1, WIDTH),
    "a single number": difference("0", "shift"),
    "a bias": {Target("1.fused", (WIDTH, WIDTH)): Change(None, bias=drawn(WIDTH, seed=8))},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_holds_for_every_reader(network, x, name):
    adapter = CHANGES[name]
    expected = copy.deepcopy(network)
    if name == "a bias":
        expected[1].fused.bias += drawn(WIDTH, seed=8)
    else:
        expected = merged(network, adapter)
    assert not torch.allclose(expected(x), network(x), atol=1e-4)
    with LoRABank([{}, adapter]).attach(network).using([2, 2]):
        torch.testing.assert_close(network(x), expected(x), rtol=0, atol=1e-12)


LAYERS = {"grouped": lambda: nn.Conv2d(8, 8, 3, groups=4), "transposed": lambda: nn.ConvTranspose2d(8, 6, 2)}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("part", ["weight", "bias", "both"])
def test_a_convolution_of_no_plain_kind_is_changed_by_its_parameters(kind, part):
    layer = LAYERS[kind]().double().requires_grad_(False)
    network, x = nn.Sequential(layer), drawn(2, 8, 5, 5, seed=3)
    weight, bias = drawn(*layer.weight.shape, seed=4), drawn(*layer.bias.shape, seed=5)
    expected = copy.deepcopy(network)
    expected[0].weight.data += weight if part != "bias" else 0
    expected[0].bias.data += bias if part != "weight" else 0
    delta = None if part == "bias" else Delta("whole difference", {"diff": weight}, 1.0, tuple(weight.shape))
    change = Change(delta, bias=None if part == "weight" else bias)
    with LoRABank([{Target("0", tuple(weight.shape)): change}]).attach(network).using([1, 1]):
        torch.testing.assert_close(network(x), expected(x), rtol=0, atol=1e-12)


def test_rows_of_different_variants_cannot_read_one_parameter(network, x):
    attachment = LoRABank([CHANGES["a norm whose weight is read"]]).attach(network)
    with pytest.raises(BlendError, match=r"0\.norm\.weight is read without its layer"), attachment.using([0, 1]):
        network(x)
    with attachment.using([0, 0]):
        assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays(network, x, fails):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kinds, attributes = [type(m) for m in network.modules()], [set(vars(m)) for m in network.modules()]
    out = network(x)
    everything = {target: change for adapter in CHANGES.values() for target, change in adapter.items()}
    try:
        with LoRABank([everything]).attach(network).using([1, 1]):
            network(x)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [type(m) for m in network.modules()] == kinds
    assert [set(vars(m)) for m in network.modules()] == attributes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(x), out)


def test_a_second_bank_reads_what_the_first_one_changed(network, x):
    one, two = CHANGES["a norm whose weight is read"], difference("0.norm", "weight", WIDTH, seed=9)
    more = CHANGES["a parameter of no layer"]
    outer, inner = LoRABank([{**two, **more}]).attach(network), LoRABank([one]).attach(network)
    expected = merged(merged(merged(network, one), two), more)(x)
    with inner.using([1, 1]), outer.using([1, 1]):
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
    with outer.using([1, 1]), inner.using([1, 1]):
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)
    assert type(network[0].norm) is nn.RMSNorm and type(network[0]) is Block


def test_what_is_not_used_is_named(network, x):
    network[1].forward = lambda x: x
    adapter = {**CHANGES["a layer that is called"], **CHANGES["a layer whose weight is read"]}
    attachment = LoRABank([adapter, {}]).attach(network)
    assert attachment.unused(1) == ["0.q", "1.fused"]
    with attachment.using([1, 1]):
        network(x)
    assert attachment.unused(1) == ["1.fused"] and attachment.unused(2) == []
    assert attachment.read() == []


def test_the_way_that_a_change_took_is_known(network, x):
    adapter = {**CHANGES["a layer that is called"], **CHANGES["a norm whose weight is read"]}
    attachment = LoRABank([adapter]).attach(network)
    with attachment.using([1, 1]):
        network(x)
    assert attachment.read() == ["0.norm"]


def test_watching_changes_no_bit_and_says_whose_changes_would_act(network, x):
    out = network(x)
    used, idle = CHANGES["a layer that is called"], CHANGES["a layer whose weight is read"]
    attachment = LoRABank([used, idle, CHANGES["a norm whose weight is read"]]).attach(network)
    with attachment.watching() as variants:
        assert torch.equal(network[0](x), network[0](x))
    assert variants == {1, 3}
    with attachment.watching() as variants:
        assert torch.equal(network(x), out)
    assert variants == {1, 2, 3}


def test_an_answer_about_a_parameter_costs_nothing_and_its_values_are_made_once():
    made = []

    def make():
        made.append(1)
        return torch.ones(3)

    deferred = Deferred(make, torch.empty(3, dtype=torch.float16), torch.device("cpu"))
    assert (deferred.dtype, deferred.shape, deferred.nbytes, deferred.is_meta) == (torch.float16, (3,), 6, False)
    assert not made
    assert torch.equal(deferred * 2, 2 * torch.ones(3)) and type(deferred + deferred) is torch.Tensor
    assert made == [1]


def test_a_changed_parameter_is_not_stored_anywhere():
    deferred = Deferred(lambda: torch.ones(3), torch.empty(3), torch.device("cpu"))
    with pytest.raises(BlendError, match="about to be stored"):
        torch.zeros(3).copy_(deferred)


# --- one product for layers of one input


def counted(call):
    """Products of two matrices in call()."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counter.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm")
            return func(*args, **(kwargs or {}))

    with Counter():
        call()
    return Counter.products


def adapters_of(layers):
    return [{t: c for i, layer in enumerate(layers) for t, c in pair(layer, 10 * i + j).items()} for j in (1, 2)]


@pytest.mark.parametrize("selection", [[1, 1], [2, 2], [0, 1], [2, 1]])
def test_q_k_and_v_project_their_input_once(network, x, selection):
    adapters = adapters_of([f"{block}.{name}" for block in (0, 1) for name in ("q", "k", "v", "out")])
    attachment, base = LoRABank(adapters).attach(network), counted(lambda: network(x))
    references = [network, *(merged(network, adapter) for adapter in adapters)]
    expected = torch.cat([references[variant](x[i : i + 1]) for i, variant in enumerate(selection)])
    outputs = []
    for _ in range(2):
        with attachment.using(selection):
            outputs.append(network(x))
    torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-12)
    assert torch.equal(*outputs)  # the first pass takes the same products as any other
    with attachment.using(selection):
        # q, k and v together, and `out` of the same parent, which gets another tensor
        assert counted(lambda: network(x)) - base == 2 * (2 + 2)


class Attention(nn.Module):
    """To a prompt of another width than the tokens'."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(3, WIDTH), nn.Linear(3, WIDTH)

    def forward(self, x, prompt):
        return x + torch.softmax(self.q(x) @ self.k(prompt).transpose(-1, -2), -1) @ self.v(prompt)


class Prompted(nn.Module):
    """Two of them. two_prompts: whether each gets a prompt of its own."""

    def __init__(self, two_prompts):
        super().__init__()
        self.first, self.second, self.two_prompts = Attention(), Attention(), two_prompts

    def forward(self, x):
        prompt = x[..., :3].contiguous()
        return self.second(self.first(x, prompt), prompt + 1 if self.two_prompts else prompt)


@pytest.mark.parametrize(("two_prompts", "products"), [(False, (2 + 2) + 2), (True, (2 + 2) + 2 + (1 + 2))])
def test_a_prompt_is_projected_once_for_all_attentions(x, two_prompts, products):
    torch.manual_seed(3)
    network = Prompted(two_prompts).double().requires_grad_(False)
    adapter = {}
    for i, (block, name) in enumerate((b, n) for b in ("first", "second") for n in "qkv"):
        width = WIDTH if name == "q" else 3
        part = Factors(drawn(2, width, seed=i), drawn(WIDTH, 2, seed=i + 9), 0.7)
        adapter[Target(f"{block}.{name}", (WIDTH, width))] = Change(part)
    attachment, base = LoRABank([adapter]).attach(network), counted(lambda: network(x))
    for _ in range(2):
        with attachment.using([1, 1]):
            torch.testing.assert_close(network(x), merged(network, adapter)(x), rtol=0, atol=1e-12)
    with attachment.using([1, 1]):
        assert counted(lambda: network(x)) - base == products


def test_an_input_that_is_written_to_in_between_is_noticed_and_not_shared(network, x):
    network[0].reused = True
    adapter = {**pair("0.q"), **pair("0.k", 3), **pair("0.v", 5)}
    attachment, expected = LoRABank([adapter]).attach(network), merged(network, adapter)(x)
    with pytest.raises(BlendError, match="writes into a tensor"), attachment.using([1, 1]):
        network(x)
    for _ in range(2):
        with attachment.using([1, 1]):
            torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_shared_products_follow_a_bank_that_moves(network, x):
    adapter = {**pair("0.q"), **pair("0.k", 3), **pair("0.v", 5)}
    bank = LoRABank([adapter])
    attachment, expected, held = bank.attach(network), merged(network, adapter)(x), bank.nbytes
    for dtype in (torch.float64, torch.float32, torch.float64):
        bank.to(dtype)
        for _ in range(2):
            with attachment.using([1, 1]):
                torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-6)
        assert bank.nbytes * 8 == held * dtype.itemsize
        bank.release()
