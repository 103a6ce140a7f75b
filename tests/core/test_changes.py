"""LoHa, LoKr, DoRA, differences and biases: what peft wrote and computes, and weights merged by hand."""

import copy
import json

import pytest
import torch
from diffusion_blend.blend_core import BlendError, LoRABank, read_adapter, resolve
from diffusion_blend.blend_core.adapters import Change, Delta, Factors, Magnitude, Target, plain
from diffusion_blend.blend_core.network.execution import evaluate_variants
from diffusion_blend.pipelines import target_index
from safetensors.torch import save_file
from torch import nn

WIDTH, CHANNELS, SIDE = 12, 6, 7


class Network(nn.Module):
    """Convolutions with a stride and a dilation, norms of two kinds, and linear layers with and without a bias."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, CHANNELS, 3, padding=1, stride=2)
        self.group = nn.GroupNorm(2, CHANNELS)
        self.wide = nn.Conv2d(CHANNELS, WIDTH, 3, padding=2, dilation=2, bias=False)
        self.point = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        x = self.point(torch.tanh(self.wide(torch.tanh(self.group(self.enter(x))))))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return tokens + self.out(torch.softmax(q @ k.transpose(-1, -2) / WIDTH**0.5, -1) @ v)


LAYERS = ["enter", "wide", "point", "qkv", "out"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def outputs(network, adapters, x, variants):
    """Row i of the result is variant variants[i] on row i of x."""
    attachment = LoRABank(adapters).attach(network)
    choices = torch.tensor(variants)[None]
    return evaluate_variants(lambda inputs, _: network(inputs), x, len(x), choices, attachment, 1)[0]


def resolved(network, path):
    return resolve(read_adapter(path), target_index(network))[0]


# --- peft


of_peft = pytest.mark.slow  # importing peft takes longer than all other tests here together
UNTOUCHED = {"init_weights": False, "module_dropout": 0.0, "rank_dropout": 0.0}
CORES = {"use_effective_conv2d": True}
CONFIGS = {
    "LoHa": ("LoHaConfig", {"r": 2, "alpha": 3, "target_modules": LAYERS, **UNTOUCHED}),
    "LoHa, of a high rank": ("LoHaConfig", {"r": 9, "alpha": 3, "target_modules": LAYERS, **UNTOUCHED}),
    "LoHa with cores": ("LoHaConfig", {"r": 2, "alpha": 3, "target_modules": LAYERS, **CORES, **UNTOUCHED}),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": LAYERS, **UNTOUCHED}),
    "LoKr of two products, with cores": (
        "LoKrConfig",
        {"r": 1, "alpha": 3, "target_modules": LAYERS, "decompose_both": True, **CORES, **UNTOUCHED},
    ),
    "LoKr of whole matrices": ("LoKrConfig", {"r": 40, "alpha": 3, "target_modules": LAYERS, **UNTOUCHED}),
    "DoRA": (  # peft's convolutions drop the dilation
        "LoraConfig",
        {"r": 2, "lora_alpha": 3, "target_modules": ["enter", "point", "qkv", "out"], "use_dora": True},
    ),
    "DoRA and rsLoRA": (
        "LoraConfig",
        {"r": 3, "lora_alpha": 2, "target_modules": ["qkv", "point"], "use_dora": True, "use_rslora": True},
    ),
    "LoRA with biases": (
        "LoraConfig",
        {"r": 2, "lora_alpha": 3, "target_modules": ["enter", "qkv"], "lora_bias": True},
    ),
    "LoRA": ("LoraConfig", {"r": 2, "lora_alpha": 3, "target_modules": LAYERS}),
}


def under_peft(network, config, **changed):
    """A copy of the network as peft adapts it, with weights drawn at random."""
    import peft

    kind, settings = config
    settings = {"init_lora_weights": False, **settings} if kind == "LoraConfig" else settings
    return peft.get_peft_model(copy.deepcopy(network), getattr(peft, kind)(**settings | changed))


@of_peft
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "LoRA"])
def test_a_file_of_pefts_predicts_what_peft_does(network, x, tmp_path, name):
    torch.manual_seed(2)
    model = under_peft(network, CONFIGS[name]).eval()
    for key, value in model.named_parameters():
        if "magnitude" in key:  # as after training: elsewhere than at the base's norms
            value.data *= 1 + 0.3 * torch.rand_like(value)
        elif "lora_B" in key and key.endswith("bias"):
            value.data += torch.randn_like(value)
    model.save_pretrained(tmp_path)
    expected = model(x).detach()
    assert not torch.allclose(expected, network(x), atol=0.05)
    torch.testing.assert_close(
        outputs(network, [resolved(network, tmp_path)], x, [1] * 4), expected, atol=2e-5, rtol=1e-4
    )


@of_peft
def test_a_loha_of_small_ranks_becomes_plain_factors_and_a_large_one_does_not(network, tmp_path):
    for rank, kind in ((1, "LoRA"), (9, "LoHa")):
        model = under_peft(network, CONFIGS["LoHa"], r=rank, alpha=1, target_modules=["qkv"])
        model.save_pretrained(tmp_path / str(rank))
        assert {change.kind for change in read_adapter(tmp_path / str(rank)).modules.values()} == {kind}


# --- by hand


def drawn(*shape, seed=3, size=0.3):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def differences():
    """Keys of whole differences, of norms and biases too, as LyCORIS and extraction tools write them."""
    return {
        "lora_unet_enter.diff": drawn(CHANNELS, 3, 3, 3),
        "lora_unet_enter.diff_b": drawn(CHANNELS),
        "lora_unet_group.w_norm": drawn(CHANNELS),
        "lora_unet_group.b_norm": drawn(CHANNELS, seed=4),
        "lora_unet_norm.diff": drawn(WIDTH),
        "lora_unet_qkv.diff": drawn(3 * WIDTH, WIDTH),
        "lora_unet_point.diff_b": drawn(WIDTH),
    }


def test_whole_differences_of_layers_norms_and_biases(network, x, tmp_path):
    save_file(differences(), tmp_path / "whole.safetensors")
    merged = copy.deepcopy(network)
    modules = dict(merged.named_modules())
    for key, value in differences().items():
        module, part = key.removeprefix("lora_unet_").split(".")
        weight = modules[module].bias if part in ("diff_b", "b_norm") else modules[module].weight
        weight.add_(value)
    targets = resolved(network, tmp_path / "whole.safetensors")
    assert len(targets) == 5
    torch.testing.assert_close(outputs(network, [targets], x, [1] * 4), merged(x), atol=1e-5, rtol=1e-4)


def column_dora():
    """LyCORIS's DoRA with magnitudes of columns, on a linear layer and a convolution."""
    return {
        "lora_unet_qkv.lora_down.weight": drawn(2, WIDTH),
        "lora_unet_qkv.lora_up.weight": drawn(3 * WIDTH, 2, seed=4),
        "lora_unet_qkv.alpha": torch.tensor(1.0),
        "lora_unet_qkv.dora_scale": 1 + drawn(1, WIDTH, seed=5).abs(),
        "lora_unet_wide.lora_down.weight": drawn(2, CHANNELS, 3, 3),
        "lora_unet_wide.lora_up.weight": drawn(WIDTH, 2, 1, 1, seed=4),
        "lora_unet_wide.dora_scale": 1 + drawn(1, CHANNELS, 1, 1, seed=5).abs(),
    }


def with_column_dora(network):
    merged, keys = copy.deepcopy(network), column_dora()
    for module, scale in (("qkv", 0.5), ("wide", 1.0)):
        weight = getattr(merged, module).weight
        down, up = keys[f"lora_unet_{module}.lora_down.weight"], keys[f"lora_unet_{module}.lora_up.weight"]
        changed = weight + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        others = [dim for dim in range(weight.dim()) if dim != 1]
        magnitude = keys[f"lora_unet_{module}.dora_scale"]
        weight.copy_(changed * magnitude / changed.square().sum(others, keepdim=True).sqrt())
    return merged


def test_magnitudes_of_columns(network, x, tmp_path):
    save_file(column_dora(), tmp_path / "dora.safetensors")
    adapter = resolved(network, tmp_path / "dora.safetensors")
    torch.testing.assert_close(
        outputs(network, [adapter], x, [1] * 4), with_column_dora(network)(x), atol=1e-5, rtol=1e-4
    )


@of_peft
def test_every_row_of_a_batch_gets_its_own_variant(network, x, tmp_path):
    """Base, plain LoRA, LoKr and DoRA side by side in one pass, on one and the same layers."""
    adapters = []
    for i, name in enumerate(("LoRA", "LoKr", "DoRA")):
        torch.manual_seed(i)
        under_peft(network, CONFIGS[name]).save_pretrained(tmp_path / str(i))
        adapters.append(resolved(network, tmp_path / str(i)))
    save_file(column_dora(), tmp_path / "dora.safetensors")
    adapters.append(resolved(network, tmp_path / "dora.safetensors"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for variants in ([0, 1, 2, 3], [4, 2, 4, 0], [3, 3, 1, 2]):
        singles = [outputs(network, adapters, x[i : i + 1], [variant])[0] for i, variant in enumerate(variants)]
        together = outputs(network, adapters, x, variants)
        torch.testing.assert_close(together, torch.stack(singles), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_slices_of_a_fused_weight_and_swapped_halves(network, x):
    """k by a LoKr, v by a DoRA, q not at all: as SD3 and Flux keep them, in one weight."""
    shape = (3 * WIDTH, WIDTH)
    product = Delta("LoKr", {"lokr_w1": drawn(3, 3), "lokr_w2": drawn(4, 4)}, 0.7, (WIDTH, WIDTH))
    swapped = torch.tensor([*range(WIDTH // 2, WIDTH), *range(WIDTH // 2)])
    magnitude = Magnitude(1 + drawn(WIDTH).abs(), of_rows=True)
    dora = Change(Factors(drawn(2, WIDTH), drawn(WIDTH, 2, seed=4), 0.5), magnitude, bias=drawn(WIDTH, seed=6))
    adapter = {
        Target("qkv", shape, (WIDTH, WIDTH)): Change(product).at_rows(swapped),
        Target("qkv", shape, (2 * WIDTH, WIDTH)): dora,
    }
    merged = copy.deepcopy(network)
    weight, bias = merged.qkv.weight, merged.qkv.bias
    weight[WIDTH : 2 * WIDTH] += 0.7 * torch.kron(drawn(3, 3), drawn(4, 4))[swapped]
    v = weight[2 * WIDTH :] + 0.5 * drawn(WIDTH, 2, seed=4) @ drawn(2, WIDTH)
    weight[2 * WIDTH :] = v * (magnitude.values / v.norm(dim=1))[:, None]
    bias[2 * WIDTH :] += drawn(WIDTH, seed=6)
    torch.testing.assert_close(outputs(network, [adapter], x, [1] * 4), merged(x), atol=1e-5, rtol=1e-4)


def test_dora_measures_the_weights_as_they_are_in_each_run(network, x, tmp_path):
    save_file(column_dora(), tmp_path / "dora.safetensors")
    bank = LoRABank([resolved(network, tmp_path / "dora.safetensors")])
    for _ in range(2):
        with bank.attach(network).using([1] * 4):
            came = network(x)
        torch.testing.assert_close(came, with_column_dora(network)(x), atol=1e-5, rtol=1e-4)
        network.qkv.weight.mul_(1.5)  # another LoRA below, say


class Packed(nn.Module):
    """A linear layer whose weight is eight-bit numbers with a scale per row, as quantised models have."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@of_peft
@pytest.mark.parametrize("name", ["LoKr", "DoRA", "LoHa"])
def test_packed_weights(network, x, tmp_path, name):
    """The same as on the weights that the packed numbers stand for."""
    torch.manual_seed(2)
    under_peft(network, CONFIGS[name], target_modules=["qkv"]).save_pretrained(tmp_path)
    adapter = resolved(network, tmp_path)
    packed, rounded = copy.deepcopy(network), copy.deepcopy(network)
    packed.qkv = Packed(network.qkv)
    rounded.qkv.weight.copy_(packed.qkv.weight * packed.qkv.scale)
    torch.testing.assert_close(
        outputs(packed, [adapter], x, [1] * 4), outputs(rounded, [adapter], x, [1] * 4), atol=1e-5, rtol=1e-4
    )


# --- memory


@of_peft
def test_a_lokr_takes_the_memory_of_its_file_and_of_one_layer_at_a_time(network, tmp_path):
    under_peft(network, CONFIGS["LoKr"]).save_pretrained(tmp_path)
    adapter = resolved(network, tmp_path)
    bank = LoRABank([adapter])
    held = sum(tensor.numel() * 4 for change in adapter.values() for tensor in change.delta.tensors.values())
    assert bank.nbytes == held < sum(p.numel() * 4 for p in network.parameters()) / 2
    assert bank.transient_bytes == 4 * WIDTH * CHANNELS * 9  # `wide`, the largest of the five


# --- refusals


def refused(tmp_path, keys, network=None):
    save_file(keys, tmp_path / "file.safetensors")
    with pytest.raises(BlendError) as error:
        adapter = read_adapter(tmp_path / "file.safetensors")
        resolve(adapter, target_index(network))
    return str(error.value)


def test_incomplete_and_mixed_modules_are_refused(tmp_path, network):
    whole = {"lora_unet_qkv.lokr_w1": drawn(6, 3), "lora_unet_qkv.lokr_w2": drawn(6, 4)}
    assert "has lokr_w1" in refused(tmp_path, dict(list(whole.items())[:1]))
    assert "LoKr and whole difference" in refused(tmp_path, whole | {"lora_unet_qkv.diff": drawn(36, 12)})
    assert "cannot be multiplied" in refused(
        tmp_path, {f"lora_unet_qkv.hada_w{i}": drawn(*s) for i, s in
                   {"1_a": (36, 2), "1_b": (3, 12), "2_a": (36, 2), "2_b": (2, 12)}.items()}
    )  # fmt: skip
    assert "without the LoRA" in refused(tmp_path, whole | {"lora_unet_out.dora_scale": drawn(12, 1)})
    assert "one per output row" in refused(tmp_path, whole | {"lora_unet_qkv.lora_magnitude_vector": drawn(12)})
    assert "expected 12" in refused(tmp_path, whole | {"lora_unet_qkv.dora_scale": drawn(1, 5)}, network)
    assert "bias has 5 numbers" in refused(tmp_path, whole | {"lora_unet_qkv.diff_b": drawn(5)}, network)
    wrong = {"lora_unet_qkv.lokr_w1": drawn(6, 3), "lora_unet_qkv.lokr_w2": drawn(60, 40)}
    assert "delta has shape (360, 120)" in refused(tmp_path, wrong, network)


@of_peft
def test_dora_without_its_magnitudes_is_refused(tmp_path, network):
    under_peft(network, CONFIGS["DoRA"]).save_pretrained(tmp_path)
    from safetensors.torch import load_file

    keys = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: v for k, v in keys.items() if "magnitude" not in k}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BlendError, match="says DoRA"):
        read_adapter(tmp_path)


def test_what_needs_low_rank_factors_takes_no_other_kind():
    dense = {Target("out", (WIDTH, WIDTH)): Change(Delta("whole difference", {"diff": drawn(12, 12)}, 1.0, (12, 12)))}
    with pytest.raises(BlendError, match="whole difference came"):
        plain(dense, "another spelling")
    pair = Factors(drawn(1, 2), drawn(2, 1), 1.0)
    assert plain({"out": Change(pair)}, "anything") == {"out": pair}


@of_peft
def test_other_peft_methods_are_refused(tmp_path, network):
    under_peft(network, CONFIGS["LoKr"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "OFT"}))
    with pytest.raises(BlendError, match="peft_type OFT, expected one of LORA, LOHA, LOKR"):
        read_adapter(tmp_path)
