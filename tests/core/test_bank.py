"""The LoRA bank on real networks: adapted equals merged, and nothing is left behind."""

import copy

import pytest
import torch
from diffusion_blend.blend_core import BlendError, LoRABank, Target
from diffusion_blend.blend_core.adapters import Change, Factors
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.blend_core.estimators import merged as core_merged
from diffusion_blend.blend_core.network.execution import agree, evaluate_variants, mixed, repeat_rows
from torch import nn

WIDTH, CHANNELS, SIDE = 8, 6, 9


class Block(nn.Module):
    """A fused q, k, v, and what a linear layer meets: tokens, and a single vector per image."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Identity())
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / WIDTH**0.5, -1) @ v
        return tokens + self.out(mixed) + self.embed(tokens.mean(1))[:, None]


class Network(nn.Module):
    """Convolutions of every kind, then two blocks, one nested deeper than the other."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.strided = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(CHANNELS, WIDTH, 3, padding=2, dilation=2, bias=False)
        self.pointwise = nn.Conv2d(WIDTH, WIDTH, 1)
        self.blocks = nn.ModuleList([Block(), nn.ModuleDict({"inner": Block()})])

    def forward(self, x):
        x = self.pointwise(torch.tanh(self.dilated(torch.tanh(self.strided(torch.tanh(self.enter(x)))))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.blocks[1]["inner"](self.blocks[0](tokens))


def slices(name):
    return [Target(name, (3 * WIDTH, WIDTH), rows=(i * WIDTH, WIDTH)) for i in range(3)]


CONVOLUTIONS = [
    Target("enter", (CHANNELS, 3, 3, 3)),
    Target("strided", (CHANNELS, CHANNELS, 3, 3)),
    Target("dilated", (WIDTH, CHANNELS, 3, 3)),
    Target("pointwise", (WIDTH, WIDTH, 1, 1)),
]
LINEARS = [
    *slices("blocks.0.qkv"),
    Target("blocks.0.out.0", (WIDTH, WIDTH)),
    Target("blocks.0.embed", (WIDTH, WIDTH)),
    Target("blocks.1.inner.qkv", (3 * WIDTH, WIDTH)),
    Target("blocks.1.inner.out.0", (WIDTH, WIDTH)),
]
SINGLE_VECTORS = LINEARS[4]  # a linear layer that meets one vector per image
EVERYWHERE = CONVOLUTIONS + LINEARS

# different in rank, scale and coverage: the second lacks the convolutions, the third q and v of the first block
BASES = [
    (EVERYWHERE, 3, 0.5),
    (LINEARS, 1, 2.0),
    ([*CONVOLUTIONS, LINEARS[1], *LINEARS[3:]], 4, 1.0),
]


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return Network().to(dtype).eval().requires_grad_(False)


def factors(targets, rank, scale, dtype, generator, size=0.3):
    def draw(*shape):
        return (size * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)

    pairs = {t: Factors(draw(rank, *t.shape[1:]), draw(t.height, rank), scale) for t in targets}
    return {target: Change(pair) for target, pair in pairs.items()}


def adapters(dtype=torch.float64, size=0.3, bases=BASES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [factors(*basis, dtype, generator, size) for basis in bases]


def merged(net, adapter):
    """A copy of the network with the adapter's deltas added to its weights, in float64 and then its dtype."""
    net = copy.deepcopy(net)
    modules = dict(net.named_modules())
    for target, change in adapter.items():
        weight, part = modules[target.module].weight, change.factors
        delta = part.scale * (part.up.double() @ part.down.double().flatten(1))
        first, last = target.span
        whole = weight.double().flatten(1).clone()
        whole[first:last] += delta
        weight.copy_(whole.view_as(weight).to(weight.dtype))
    return net


def inputs(rows, dtype=torch.float64, seed=2):
    return torch.randn(rows, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )


def state(net):
    """Every bit of a network that a bank could change: its tensors, and the attributes of each module."""
    attributes = {name: set(module.__dict__) for name, module in net.named_modules()}
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}, attributes


def assert_untouched(net, before, out, x):
    tensors, attributes = state(net)
    assert attributes == before[1]
    assert not any("forward" in names for names in attributes.values())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before[0].items())
    assert torch.equal(net(x), out)


def assert_rows_are_merged(net, basis, selection, x, tolerance=1e-11):
    """Row i of one adapted pass equals variant selection[i] merged. tolerance: relative to the largest output."""
    with LoRABank(basis).attach(net).using(selection):
        adapted = net(x)
    references = [net, *(merged(net, adapter) for adapter in basis)]
    times = len(x) // len(selection)
    rows = [references[variant](x[i : i + 1]) for i, variant in enumerate(v for v in selection for _ in range(times))]
    expected = torch.cat(rows)
    assert (adapted - expected).abs().max() <= tolerance * expected.abs().max()
    return adapted


# --- adapted equals merged


@pytest.mark.parametrize("selection", [[0, 1, 2, 3], [3, 3, 0, 1, 2, 0, 1], [1, 3], [2, 0], [2, 2, 1]])
def test_every_row_of_a_mixed_batch_is_its_variant_merged(selection):
    assert_rows_are_merged(network(), adapters(), selection, inputs(len(selection)))


@pytest.mark.parametrize("variant", [1, 2, 3])
def test_one_variant_for_all_rows_is_that_variant_merged(variant):
    assert_rows_are_merged(network(), adapters(), [variant] * 3, inputs(3))


@pytest.mark.parametrize("target", EVERYWHERE, ids=lambda target: f"{target.module}{target.rows or ''}")
@pytest.mark.parametrize("selection", [[1, 1], [1, 0, 2]])
def test_each_kind_of_layer_alone_is_its_variant_merged(target, selection):
    basis = adapters(bases=[([target], 2, 0.7), ([target], 3, 1.3)])
    adapted = assert_rows_are_merged(network(), basis, selection, inputs(len(selection)))
    assert not torch.allclose(adapted, network()(inputs(len(selection))))  # the layer does matter


def test_variant_zero_is_the_base_bit_for_bit():
    net, x = network(), inputs(3)
    with LoRABank(adapters()).attach(net).using([0, 0, 0]):
        assert torch.equal(net(x), net(x))
        assert not any("forward" in module.__dict__ for module in net.modules())
        inside = net(x)
    assert torch.equal(inside, net(x))


@pytest.mark.parametrize("frames", [2, 5])
def test_rows_may_stand_several_times_each(frames):
    selection = [1, 0, 3]
    tokens_only = [({t: f for t, f in adapter.items() if t != SINGLE_VECTORS}) for adapter in adapters()]
    assert_rows_are_merged(network(), tokens_only, selection, inputs(len(selection) * frames))


def test_a_fitting_number_of_tokens_in_one_list_is_refused_as_chance():
    """Networks of experts sort the tokens of all images, and a multiple of the selection would say nothing."""
    net, x = network(), inputs(6)
    attachment = LoRABank(adapters()).attach(net)
    with pytest.raises(BlendError, match=r"received 6 rows.*unknown which row is whose"), attachment.using([1, 0, 3]):
        net(x)
    with attachment.using([1, 1, 1]):  # one variant for all needs no order
        torch.testing.assert_close(net(x), merged(net, adapters()[0])(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("selection", [[1, 1], [0, 1, 2]])
def test_convolutions_of_sound_images_and_videos(dimensions, selection):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    net = nn.Sequential(kind(4, 6, 2, stride=2, padding=1)).double().requires_grad_(False)
    target = Target("0", (6, 4, *[2] * dimensions))
    bases = [factors([target], rank, 0.5, torch.float64, torch.Generator().manual_seed(rank)) for rank in (1, 3)]
    x = torch.randn(len(selection), 4, *[5] * dimensions, dtype=torch.float64)
    assert_rows_are_merged(net, bases, selection, x)


OTHER_KINDS = [
    nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 2, groups=2, stride=2),
]  # fmt: skip


@pytest.mark.parametrize("layer", OTHER_KINDS)
def test_layers_of_other_kinds_are_changed_in_their_weight(layer):
    """Convolutions of groups and transposed ones: their output is no product that an addition could be made for."""
    net = nn.Sequential(layer).double().requires_grad_(False)
    target = Target("0", tuple(layer.weight.shape))
    bases = [factors([target], rank, 0.5, torch.float64, torch.Generator().manual_seed(rank)) for rank in (1, 3)]
    x = torch.randn(2, layer.in_channels, 5, 5, dtype=torch.float64)
    for variant in (1, 2):
        assert_rows_are_merged(net, bases, [variant] * 2, x)
    with pytest.raises(BlendError, match=r"0\.weight is read without its layer.*sequential"):
        assert_rows_are_merged(net, bases, [1, 2], x)


def test_rows_that_are_no_multiple_of_the_selection_are_refused_and_nothing_remains():
    net, x = network(), inputs(4)
    before, out = state(net), net(x)
    with (
        pytest.raises(BlendError, match=r"received 4 rows where the blend passed 3.*sequential"),
        LoRABank(adapters()).attach(net).using([0, 1, 2]),
    ):
        net(x)
    assert_untouched(net, before, out, x)


@pytest.mark.parametrize("selection", [[1, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapted_equals_merged_to_the_dtypes_rounding(dtype, selection):
    # Some ten layers, each of which rounds its output; the merged weights are rounded once more.
    net, x = network(dtype), inputs(len(selection), dtype)
    assert_rows_are_merged(net, adapters(dtype), selection, x, tolerance=20 * torch.finfo(dtype).eps)


def test_small_half_precision_factors_of_a_scale_below_one_keep_their_digits():
    # up * scale is about 6e-7, of which float16 (steps of 6e-8 there) keeps one digit; the delta itself is about 2.
    target, generator = Target("0", (WIDTH, WIDTH)), torch.Generator().manual_seed(3)
    up = (1e-5 * torch.randn(WIDTH, 4, generator=generator)).half()
    down = (500 * torch.randn(4, WIDTH, generator=generator)).half()
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    x = torch.randn(2, 3, WIDTH, generator=generator)
    base = net(x)
    with LoRABank([{target: Change(Factors(down, up, 1 / 16))}]).attach(net).using([1, 1]):
        delta = net(x) - base
    expected = x @ (up.float() @ down.float() / 16).T
    assert (delta - expected).abs().max() < 1e-5 * expected.abs().max() + 1e-6


def test_adapters_of_unlike_dtypes_share_a_bank():
    mixed = [adapters(dtype)[i] for i, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32))]
    assert_rows_are_merged(network(torch.float32), mixed, [0, 1, 2, 3], inputs(4, torch.float32), tolerance=1e-5)


def test_channels_last_networks_are_adapted_alike():
    net = network().to(memory_format=torch.channels_last)
    x = inputs(4).to(memory_format=torch.channels_last)
    assert_rows_are_merged(net, adapters(), [0, 1, 2, 3], x)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_convolutions_of_another_padding_mode_are_adapted_alike(mode):
    net = network()
    for name in ("enter", "strided", "dilated"):
        getattr(net, name).padding_mode = mode  # as seamless tiling does
    for selection in ([1, 1], [0, 1, 2, 3]):
        assert_rows_are_merged(net, adapters(), selection, inputs(len(selection)))


def test_strength_zero_is_the_base():
    net, x = network(), inputs(2)
    silent = [{target: part.times(0.0) for target, part in adapters()[0].items()}]
    with LoRABank(silent).attach(net).using([1, 1]):
        torch.testing.assert_close(net(x), network()(x), rtol=0, atol=1e-12)


def test_a_bank_that_moved_to_another_dtype_still_adapts():
    net, bank = network(torch.float32), LoRABank(adapters(torch.float32))
    attachment, x = bank.attach(net), inputs(4, torch.float32)
    with attachment.using([0, 1, 2, 3]):
        first = net(x)
    bank.double()
    with attachment.using([0, 1, 2, 3]):
        torch.testing.assert_close(net(x), first)
    net.double()
    with attachment.using([0, 1, 2, 3]):
        second = net(x.double())
    torch.testing.assert_close(second.float(), first, rtol=1e-4, atol=1e-5)  # float32 over ten layers


# --- nothing is left behind


def test_a_module_that_was_replaced_after_attaching_is_adapted_the_next_time():
    net, x = network(), inputs(2)
    bank = LoRABank(adapters())
    first = bank.attach(net)
    assert bank.attach(net) is first
    net.blocks[0].embed = copy.deepcopy(net.blocks[0].embed)
    with LoRABank(adapters()).attach(net).using([1, 1]):
        expected = net(x)
    with bank.attach(net).using([1, 1]):
        assert torch.equal(net(x), expected)
    assert bank.attach(net) is not first


def test_attaching_and_using_leaves_every_bit_as_it_was():
    net, x = network(), inputs(4)
    before, out = state(net), net(x)
    attachment = LoRABank(adapters()).attach(net)
    assert_untouched(net, before, out, x)
    for selection in ([0, 1, 2, 3], [2] * 4, [0] * 4):
        with attachment.using(selection):
            net(x)
        assert_untouched(net, before, out, x)


def test_an_exception_inside_leaves_every_bit_as_it_was():
    net, x = network(), inputs(2)
    before, out = state(net), net(x)
    attachment = LoRABank(adapters()).attach(net)
    with pytest.raises(RuntimeError, match="out of memory"), attachment.using([1, 2]):
        raise RuntimeError("out of memory")
    assert_untouched(net, before, out, x)
    with pytest.raises(RuntimeError), attachment.using([1, 2]):
        net(x[:, :2])  # a shape the network refuses
    assert_untouched(net, before, out, x)
    with attachment.using([1, 2]):  # and the attachment goes on working
        assert not torch.allclose(net(x), out)


def test_a_forward_of_the_instances_own_runs_below_ours_and_is_put_back():
    net, x, seen = network(), inputs(2), []
    module = net.blocks[0].embed

    def replacement(tokens):
        seen.append("own")
        return 2 * nn.functional.linear(tokens, module.weight, module.bias)

    module.forward = replacement
    basis = adapters(bases=[([Target("blocks.0.embed", (WIDTH, WIDTH))], 2, 1.0)])
    out = net(x)
    seen.clear()
    with LoRABank(basis).attach(net).using([1, 1]):
        assert module.__dict__["forward"] is not replacement
        adapted = net(x)
    assert seen == ["own"]
    assert module.__dict__["forward"] is replacement
    assert torch.equal(net(x), out)
    # replacement doubles the layer, and the delta comes on top of that once
    (part,) = (change.factors for change in basis[0].values())
    reference = network()
    reference.blocks[0].embed.weight.mul_(2).add_(part.up @ part.down)
    reference.blocks[0].embed.bias.mul_(2)
    torch.testing.assert_close(adapted, reference(x), rtol=0, atol=1e-11)


def test_a_second_bank_inside_adds_its_deltas_and_comes_off_alone():
    net, x = network(), inputs(3)
    before, out = state(net), net(x)
    one, two = adapters(), adapters(seed=9)
    first, second = LoRABank(one).attach(net), LoRABank(two).attach(net)
    with first.using([1, 2, 0]):
        single_run = net(x)
        with second.using([3, 0, 1]):
            both = net(x)
        assert torch.equal(net(x), single_run)
    assert_untouched(net, before, out, x)
    pairs = [(one[0], two[2]), (one[1], {}), ({}, two[0])]
    expected = [merged(merged(net, a), b)(x[i : i + 1]) for i, (a, b) in enumerate(pairs)]
    torch.testing.assert_close(both, torch.cat(expected), rtol=0, atol=1e-10)


def test_a_bank_in_use_on_a_network_cannot_be_opened_on_it_again():
    net, x = network(), inputs(2)
    before, out = state(net), net(x)
    bank = LoRABank(adapters())
    with bank.attach(net).using([1, 2]):
        adapted = net(x)
        with pytest.raises(BlendError, match="in use on this network already"), bank.attach(net).using([1, 1]):
            pass
        assert torch.equal(net(x), adapted)
    assert_untouched(net, before, out, x)


def test_one_bank_serves_two_networks():
    one, other, x = network(seed=0), network(seed=5), inputs(2)
    bank = LoRABank(adapters())
    with bank.attach(one).using([1, 2]), bank.attach(other).using([3, 0]):
        first, second = one(x), other(x)
    expected = torch.cat([merged(one, adapters()[0])(x[:1]), merged(one, adapters()[1])(x[1:])])
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-11)
    expected = torch.cat([merged(other, adapters()[2])(x[:1]), other(x[1:])])
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-11)


def test_a_network_without_the_adapted_modules_is_refused():
    with pytest.raises(BlendError) as caught:
        LoRABank(adapters()).attach(nn.Sequential(nn.Linear(2, 2)))
    assert "9 of 9 adapted modules are not in this network (enter, strided, dilated)" in str(caught.value)


# --- several variants of one prediction


def variants_of(*columns):
    return torch.tensor(columns).T


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_batched_equals_sequential_equals_merged(group, chunks):
    net, batch = network(), 2
    x = inputs(chunks * batch)
    variants = variants_of([0, 1, 2, 3], [0, 3, 1, 2])  # each image its own order
    passes = []

    def call(repeated, part):
        passes.append(len(repeated))
        return net(repeated)

    out = evaluate_variants(call, x, len(x), variants, LoRABank(adapters()).attach(net), group)
    sizes = {1: [1, 1, 1, 1], 2: [2, 2], 3: [3, 1], 4: [4]}[group]
    assert passes == [len(x) * size for size in sizes]
    references = [net, *(merged(net, adapter) for adapter in adapters())]
    expected = torch.stack(
        [torch.cat([references[row[i % batch]](x[i : i + 1]) for i in range(len(x))]) for row in variants.tolist()]
    )
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


def test_apart_no_pass_holds_two_variants_and_the_predictions_are_the_same():
    net, x, control = network(), inputs(6), torch.arange(6.0)  # two chunks of three images
    variants = torch.tensor([[0, 1, 0], [2, 2, 2]])
    attachment, passes = LoRABank(adapters()).attach(net), []

    def call(repeated, part):
        passes.append((set(part.flatten().tolist()), repeated["control"].tolist()))
        return net(repeated["x"])

    nested = {"x": x, "control": control}
    out = evaluate_variants(call, nested, 6, variants, attachment, 1, apart=True)
    assert passes == [({0}, [0, 2, 3, 5]), ({1}, [1, 4]), ({2}, [0, 1, 2, 3, 4, 5])]
    together = evaluate_variants(lambda inner, _: net(inner["x"]), nested, 6, variants, attachment, 2)
    torch.testing.assert_close(out, together, rtol=0, atol=1e-11)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_variant_with_a_network_of_its_own_shares_no_pass(group, apart):
    net, x = network(), inputs(6)  # two chunks of three images
    networks = {2: merged(net, adapters()[1]), 4: merged(net, adapters()[0])}  # a bank has nothing for these two
    attachment = LoRABank([adapters()[0], {}, adapters()[2], {}]).attach(net)
    variants = torch.tensor([[0, 0, 0], [2, 2, 2], [1, 2, 3], [4, 2, 1], [3, 3, 3]])
    passes = []

    def call(repeated, part):
        passes.append(part.tolist())
        return networks.get(int(part[0, 0]), net)(repeated)

    out = evaluate_variants(call, x, 6, variants, attachment, group, apart, unmixed=networks)
    for part in passes:
        held = {variant for row in part for variant in row}
        assert len(held) == 1 or held.isdisjoint(networks)
    shared = [part for part in passes if networks.keys().isdisjoint(part[0])]
    if not apart:  # steps 0 and 4 together where two fit; then one image of 1 and 3 each, and one of 1
        assert [len(part) for part in shared] == ([2, 1, 1] if group > 1 else [1, 1, 1, 1])
    references = [net, merged(net, adapters()[0]), networks[2], merged(net, adapters()[2]), networks[4]]
    expected = [torch.cat([references[row[i % 3]](x[i : i + 1]) for i in range(6)]) for row in variants.tolist()]
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=1e-11)


def test_a_blend_of_one_network_is_the_weighted_sum_of_its_merged_variants():
    net, x, coefficients = network(), inputs(4), (-0.4, 0.7, 0.2, 0.5)
    attachment, plan = LoRABank(adapters()).attach(net), exact(coefficients, 1, [0, 1])
    blended = plan(lambda v: evaluate_variants(lambda inner, _: net(inner), x, 4, v, attachment, 4), 0)
    predictions = [net(x), *(merged(net, adapter)(x) for adapter in adapters())]
    expected = sum(c * p for c, p in zip(coefficients, predictions, strict=True))
    torch.testing.assert_close(blended, expected, rtol=0, atol=1e-11)


def test_repeating_rows_copies_containers_and_leaves_other_things_alone():
    rows, other, text = torch.arange(8.0).view(4, 2), torch.ones(3, 2), object()
    nested = {"x": rows, "list": [rows, other, None], "tuple": (1, {"deep": rows}), "text": text}
    repeated = repeat_rows(nested, rows=4, chunks=2, k=3)
    # (chunks, k, batch): each chunk's images stand k times before the next chunk begins
    assert repeated["x"][:, 0].tolist() == [0, 2] * 3 + [4, 6] * 3
    assert torch.equal(repeated["list"][0], repeated["x"])
    assert torch.equal(repeated["tuple"][1]["deep"], repeated["x"])
    assert repeated["list"][1] is other and repeated["list"][2] is None
    assert repeated["text"] is text and repeated["tuple"][0] == 1
    repeated["list"].clear()
    repeated["tuple"][1].clear()
    assert len(nested["list"]) == 3 and "deep" in nested["tuple"][1]


def test_one_variant_repeats_nothing_and_still_copies_the_containers():
    nested = {"list": [torch.ones(4, 2)]}
    repeated = repeat_rows(nested, rows=4, chunks=1, k=1)
    assert repeated["list"] is not nested["list"]
    assert repeated["list"][0] is nested["list"][0]


def test_a_call_that_empties_its_lists_gets_fresh_ones_in_every_pass():
    net, x = network(), inputs(2)
    nested = {"x": x, "control": [torch.zeros(2, 1)]}

    def call(repeated, part):
        repeated["control"].pop()
        return net(repeated["x"])

    out = evaluate_variants(call, nested, 2, variants_of([0, 1], [0, 1]), LoRABank(adapters()).attach(net), 1)
    assert out.shape[:2] == (2, 2) and len(nested["control"]) == 1


# --- cost


def test_factors_are_kept_in_the_computations_dtype_alone_and_lose_nothing_by_it():
    bases = adapters(torch.float32)
    bank, fresh = LoRABank(bases), LoRABank(bases)
    whole = bank.nbytes
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        net, x = network(dtype), inputs(4, dtype)
        with bank.attach(net, dtype).using([0, 1, 2, 3]):
            came = net(x)
        assert bank.nbytes * 4 == whole * dtype.itemsize
        assert all(layer.placed(x).down.data_ptr() == layer.down.data_ptr() for layer in bank.low_rank)
        with fresh.attach(net).using([0, 1, 2, 3]):
            assert torch.equal(came, net(x))


def test_a_network_that_mixes_rows_shows_it():
    """Predictions (k, rows, ...) of two variants that differ by 1: rounding agrees, a row of the other does not."""
    predictions = torch.stack([torch.ones(4, 3), 2 * torch.ones(4, 3)])
    assert agree(predictions + 1e-3, predictions)
    assert not agree(predictions.flip(0), predictions)
    assert agree(predictions[:1] * 1.01, predictions[:1]) and not agree(predictions[:1] * 1.1, predictions[:1])
    assert [mixed(torch.tensor([[1, 1], [2, 2]]), group) for group in (1, 2)] == [False, True]
    assert mixed(torch.tensor([[1, 2]]), 1)


def test_a_small_scale_leaves_small_float16_factors_as_they_are():
    """Multiplied into `up`, it would push them below float16's normal numbers, where bits are lost."""
    target = Target("blocks.0.out.0", (WIDTH, WIDTH))
    generator = torch.Generator().manual_seed(5)
    down = torch.randn(2, WIDTH, generator=generator).half()
    up = (7e-5 * (1 + torch.rand(WIDTH, 2, generator=generator))).half()
    net, x = network(torch.float32), torch.randn(3, 5, WIDTH, generator=generator)
    layer, rows = net.blocks[0].out[0], [[1] * 3, [0, 1, 1]]
    layer.weight.zero_()
    bank = LoRABank([{target: Change(Factors(down, up, 1 / 64))}])
    for selection in rows:
        with bank.attach(net).using(selection):
            came = layer(x)[1:]
        expected = x[1:] @ (up.float() @ down.float()).T / 64
        assert (came - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert bank.low_rank[0].up.dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_four_rank_8_bases_take_less_than_three_percent_of_sd15(dtype):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)  # SD 1.5's shape is the class's default
    weights = sum(p.numel() for p in unet.parameters())
    assert 850e6 < weights < 870e6
    projections = ("to_q", "to_k", "to_v", "to_out.0")  # what reward LoRAs train
    targets = [
        Target(name, tuple(module.weight.shape)) for name, module in unet.named_modules() if name.endswith(projections)
    ]
    assert len(targets) == 128
    one = {
        t: Change(Factors(torch.empty(8, t.shape[1], dtype=dtype, device="meta"),
                          torch.empty(t.shape[0], 8, dtype=dtype, device="meta"), 0.5))  # alpha below the rank
        for t in targets
    }  # fmt: skip
    bank = LoRABank([one] * 4)
    assert bank.nbytes == 4 * 8 * sum(sum(t.shape) for t in targets) * dtype.itemsize
    print(f"{dtype}: {bank.nbytes / 2**20:.1f} MiB, {bank.nbytes / (2 * weights):.2%} of the fp16 UNet")
    assert bank.nbytes <= 0.03 * 2 * weights  # against the network in half precision


@pytest.mark.slow
@pytest.mark.parametrize("selection", [[1, 1], [1, 2], [0, 3]])
def test_torch_compile_traces_a_bank_in_one_graph(selection):
    """A break at every adapted layer would take away what compiling is for."""
    torch._dynamo.reset()
    net, x = network(torch.float32), inputs(2, torch.float32)
    with LoRABank(adapters(torch.float32)).attach(net).using(selection):
        explanation = torch._dynamo.explain(net)(x)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0), explanation.break_reasons


@pytest.mark.slow
def test_a_compiled_network_follows_the_variant():
    net, x = network(torch.float32), inputs(2, torch.float32)
    attachment = LoRABank(adapters(torch.float32)).attach(net)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    for selection in ([1, 1], [2, 2], [1, 3], [0, 2], [1, 1], [3, 3], [0, 0]):
        with attachment.using(selection):
            plain, traced = net(x), compiled(x)
        torch.testing.assert_close(traced, plain, rtol=1e-5, atol=1e-5)
    references = [merged(net, adapter)(x) for adapter in adapters(torch.float32)]
    with attachment.using([2, 2]):
        torch.testing.assert_close(compiled(x), references[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_takes_one_graph_whatever_the_choice():
    """Another weight, seed or choice compiles nothing anew: one graph with a bank in use, one without."""
    torch._dynamo.reset()
    net, x, graphs = network(torch.float32), inputs(4, torch.float32), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(net, backend=backend)
    attachment = LoRABank(adapters(torch.float32)).attach(compiled)
    choices = ([1] * 4, [2] * 4, [3] * 4, [1, 2, 3, 1], [0, 1, 2, 3], [2, 2, 1, 0], [1] * 4, [0] * 4, [3, 3, 0, 0])
    for selection in choices:
        with attachment.using(selection):
            traced = compiled(x)
        with LoRABank(adapters(torch.float32)).attach(net).using(selection):
            torch.testing.assert_close(traced, net(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 2


@pytest.mark.parametrize("alignment", [0.7, 1.0, -0.4])
def test_a_mixture_is_all_bases_merged_at_their_coefficients(alignment):
    """In one prediction, over a schedule: the base, one basis alone, and mixtures of any sign."""
    shares = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.2, 0.3], [0.1, 0.0, 0.9]], dtype=torch.float64)
    table = torch.cat([1 - alignment * shares.sum(1, keepdim=True), alignment * shares], 1)
    net, x, bases = network(), inputs(2), adapters()
    attachment, plan = LoRABank(bases).attach(net), core_merged(table, len(table), [0, 1])
    attachment.mix(plan.mixtures)
    for step, (_, *coefficients) in enumerate(table.tolist()):
        expected = net
        for coefficient, adapter in zip(coefficients, bases, strict=True):
            scaled = {target: change.times(coefficient) for target, change in adapter.items()}
            expected = merged(expected, scaled)
        passes = []

        def call(inputs, variants, passes=passes):
            passes.append(variants)
            return net(inputs)

        came = plan(lambda variants, call=call: evaluate_variants(call, x, 2, variants, attachment, 1), step)
        torch.testing.assert_close(came, expected(x), rtol=0, atol=1e-11)
        assert len(passes) == 1
