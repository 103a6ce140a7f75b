"""Adapters on hosts: slices, swaps, convolutions, mismatches, and the average of several."""

import json

import pytest
import torch
from diffusion_blend.blend_core.adapters import Target, TargetIndex, read_adapter, resolve
from diffusion_blend.blend_core.errors import BlendError

from .lora_worlds import (
    FLUX,
    HOSTS,
    SD3,
    SD15,
    SDXL,
    WAN,
    pair,
    spelled,
    tensors_for,
    write,
)

PEFT = "4 diffusers with peft names"
FUSED = [(SD3, "x_block.attn.qkv"), (FLUX, "img_attn.qkv"), (FLUX, "txt_attn.qkv"), (FLUX, "linear1")]


def read(folder, tensors, name="lora", metadata=None):
    return read_adapter(write(folder / f"{name}.safetensors", tensors, metadata))


def resolution_error(adapter, host):
    with pytest.raises(BlendError) as caught:
        resolve(adapter, host.index)
    return str(caught.value)


# --- where it goes


@pytest.mark.parametrize(("host", "native"), FUSED, ids=lambda part: getattr(part, "name", part))
def test_split_projections_are_slices_of_the_fused_weight(tmp_path, host, native):
    pairs = tensors_for([weight for weight in host.weights if weight.rows and native in weight.native])
    resolved, report = resolve(read(tmp_path, spelled(pairs, PEFT)), host.index)
    assert report.matched == len(pairs) >= 3
    for weight, (down, up) in pairs.items():
        factors = resolved[weight.target].factors
        assert torch.equal(factors.down, down)
        assert torch.equal(factors.up, up)


@pytest.mark.parametrize(("host", "native"), FUSED, ids=lambda part: getattr(part, "name", part))
@pytest.mark.parametrize("spelling", ["10 kohya native", "13 ComfyUI native", "16 BFL"])
def test_a_fused_lora_acts_on_the_whole_weight(tmp_path, host, native, spelling):
    weight = next(weight for weight in host.weights if weight.rows and native in weight.native)
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    resolved, _ = resolve(read(tmp_path, spelled({weight: (down, up)}, spelling)), host.index)
    (target, change), *others = resolved.items()
    assert (target.rows, others) == (None, [])
    assert torch.equal(change.factors.up, up)


@pytest.mark.parametrize(("host", "native"), FUSED, ids=lambda part: getattr(part, "name", part))
def test_a_fused_lora_is_dealt_out_to_the_separate_weights_of_a_diffusers_host(tmp_path, host, native):
    weights = [weight for weight in host.weights if weight.rows and native in weight.native]
    down, up = torch.randn(2, weights[0].shape[1]), torch.randn(weights[0].shape[0], 2)
    fused = spelled({weights[0]: (down, up)}, "13 ComfyUI native")
    resolved, _ = resolve(read(tmp_path, fused), host.diffusers_index)
    by_module = {target.module: change.factors for target, change in resolved.items()}
    assert torch.equal(torch.cat([by_module[weight.diffusers].up for weight in weights]), up)
    assert all(torch.equal(change.factors.down, down) for change in resolved.values())


def test_xlabs_names_reach_their_weights_or_rows(tmp_path):
    h = 8
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (3 * h, h),
        "double_blocks.0.processor.qkv_lora2": (3 * h, h),
        "double_blocks.0.processor.proj_lora2": (h, h),
        "single_blocks.0.processor.qkv_lora": (3 * h, h),
        "single_blocks.0.processor.proj_lora": (h, 5 * h),
    }
    tensors = {}
    for name, (out, width) in shapes.items():
        tensors |= {f"{name}.down.weight": torch.randn(2, width), f"{name}.up.weight": torch.randn(out, 2)}
    resolved, _ = resolve(read(tmp_path, tensors), FLUX.index)
    assert {(target.module.removeprefix("diffusion_model."), target.rows) for target in resolved} == {
        ("double_blocks.0.img_attn.qkv", None),
        ("double_blocks.0.txt_attn.qkv", None),
        ("double_blocks.0.txt_attn.proj", None),
        ("single_blocks.0.linear1", (0, 3 * h)),
        ("single_blocks.0.linear2", None),
    }


@pytest.mark.parametrize("host", [SD3, FLUX], ids=lambda host: host.name)
def test_scale_and_shift_of_norm_out_change_places(tmp_path, host):
    pairs = tensors_for([weight for weight in host.weights if weight.swap])
    ((_, (_, up)),) = pairs.items()
    resolved, _ = resolve(read(tmp_path, spelled(pairs, PEFT)), host.index)
    ((target, change),) = resolved.items()
    assert torch.equal(change.factors.up, torch.cat([up[8:], up[:8]]))
    assert not target.swap_halves


def test_the_native_name_of_norm_out_is_not_swapped(tmp_path):
    pairs = tensors_for([weight for weight in SD3.weights if weight.swap])
    ((_, (_, up)),) = pairs.items()
    resolved, _ = resolve(read(tmp_path, spelled(pairs, "13 ComfyUI native")), SD3.index)
    assert torch.equal(next(iter(resolved.values())).factors.up, up)


def test_the_native_name_of_norm_out_is_swapped_on_a_diffusers_host(tmp_path):
    pairs = tensors_for([weight for weight in SD3.weights if weight.swap])
    ((_, (_, up)),) = pairs.items()
    resolved, _ = resolve(read(tmp_path, spelled(pairs, "13 ComfyUI native")), SD3.diffusers_index)
    assert torch.equal(next(iter(resolved.values())).factors.up, torch.cat([up[8:], up[:8]]))


@pytest.mark.parametrize(
    ("host", "shape"), [(SD15, (2, 8, 1, 1)), (SDXL, (2, 8))], ids=["convolution of SD 1.5", "linear of SDXL"]
)
@pytest.mark.parametrize("written", [(2, 8), (2, 8, 1, 1)])
def test_proj_in_takes_the_kind_of_the_target(tmp_path, host, shape, written):
    weight = next(weight for weight in host.weights if weight.diffusers.endswith("proj_in"))
    down, up = torch.randn(written), torch.randn(8, 2, *written[2:])
    resolved, _ = resolve(read(tmp_path, spelled({weight: (down, up)}, "9 kohya")), host.index)
    factors = resolved[weight.target].factors
    assert factors.down.shape == shape
    assert torch.equal(factors.down.flatten(), down.flatten())
    assert factors.up.shape == (8, 2)


def test_a_tucker_core_is_folded_into_down(tmp_path):
    down, mid, up = torch.randn(3, 8, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(8, 3, 1, 1)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    parts = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    tensors = {f"{key}.{part}.weight": tensor for part, tensor in parts.items()}
    resolved, _ = resolve(read(tmp_path, tensors), SD15.index)
    (factors,) = (change.factors for change in resolved.values())
    x = torch.randn(1, 8, 6, 6)
    chain = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    folded = torch.conv2d(torch.conv2d(x, factors.down, padding=1), factors.up[:, :, None, None])
    assert torch.allclose(folded, chain, atol=1e-4)  # sums of about 200 products in fp32
    assert factors.rank == 3


def test_files_of_mixed_rank_keep_each_modules_own(tmp_path):
    first, second = SD15.weights[:2]
    pairs = {**tensors_for([first], rank=1), **tensors_for([second], rank=5)}
    resolved, report = resolve(read(tmp_path, spelled(pairs, PEFT)), SD15.index)
    assert (resolved[first.target].rank, resolved[second.target].rank) == (1, 5)
    assert report.ranks == (1, 5)


# --- what does not fit


def test_a_lora_of_another_family_names_both_families_and_three_keys(tmp_path):
    message = resolution_error(read(tmp_path, spelled(tensors_for(FLUX.plain), "16 BFL")), SD15)
    assert "They look like Flux" in message
    assert "the model looks like SD 1.5" in message
    assert message.count("'") == 6


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
@pytest.mark.parametrize("spelling", ["9 kohya", "13 ComfyUI native"])
def test_no_host_takes_the_lora_of_another_family(tmp_path, host, spelling):
    adapter = read(tmp_path, spelled(tensors_for(host.plain), spelling))
    for other in HOSTS:
        if other is not host:
            with pytest.raises(BlendError):
                resolve(adapter, other.index)


def test_sd15_on_sdxl_is_told_by_its_widths(tmp_path):
    to_k = next(weight for weight in SDXL.weights if weight.diffusers.endswith("attn2.to_k"))
    message = resolution_error(read(tmp_path, pair(to_k.diffusers, width=768)), SDXL)
    assert "(8, 768)" in message
    assert "(8, 2048)" in message
    assert "768 against 2048 is SD 1.5 on SDXL" in message


def test_a_slice_that_does_not_fit_raises_with_both_shapes(tmp_path):
    message = resolution_error(read(tmp_path, pair("transformer_blocks.0.attn.to_q", out=24)), SD3)
    assert "(24, 8)" in message
    assert "(8, 8) (a slice)" in message


def test_a_3x3_kernel_does_not_fit_a_linear_layer(tmp_path):
    module = SDXL.weights[0].diffusers
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 8, 3, 3), f"{module}.lora_B.weight": torch.ones(8, 2, 1, 1)}
    assert "(8, 8, 3, 3)" in resolution_error(read(tmp_path, tensors), SDXL)


def test_a_partial_match_raises_unless_allowed(tmp_path):
    tensors = {**spelled(tensors_for(SD15.plain), "9 kohya"), **pair("mid_block.attentions.9.to_q")}
    adapter = read(tmp_path, tensors)
    message = resolution_error(adapter, SD15)
    assert "1 of its 7 modules are not in this model" in message
    assert "allow partial" in message
    resolved, report = resolve(adapter, SD15.index, allow_partial=True)
    assert len(resolved) == 6
    assert report.left_out == {"mid_block.attentions.9.to_q": "no such module in the model"}


def test_nothing_matched_raises_even_where_partial_is_allowed(tmp_path):
    with pytest.raises(BlendError, match="none of its 1 modules"):
        resolve(read(tmp_path, pair("nothing.like.it")), SD15.index, allow_partial=True)


def test_one_weight_under_a_diffusers_and_a_native_name_raises(tmp_path):
    weight = SD15.weights[0]
    tensors = {**pair(weight.diffusers), **pair("diffusion_model." + weight.native)}
    assert "both act on" in resolution_error(read(tmp_path, tensors), SD15)


def test_a_slice_and_its_fused_weight_in_one_file_raise(tmp_path):
    tensors = {**pair("transformer_blocks.0.attn.to_k"), **pair("joint_blocks.0.x_block.attn.qkv", out=24)}
    assert "both act on" in resolution_error(read(tmp_path, tensors), SD3)


def test_aliases_that_collide_on_different_targets_raise():
    with pytest.raises(BlendError, match="fault in the host's key map"):
        TargetIndex({"unet.a.b": Target("x", (8, 8)), "lora_unet_a_b": Target("y", (8, 8))})


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_the_index_knows_its_family_and_finds_nothing_for_strange_names(host):
    assert host.index.family == host.name
    assert host.index.find("no.such.module") == ()


# --- the report


def test_the_report_says_in_a_few_lines_what_was_loaded(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2}))
    tensors = {**spelled(tensors_for(WAN.plain), "5 peft"), **pair("text_encoder.text_model.encoder.layers.0.mlp.fc1")}
    _, report = resolve(read(tmp_path, tensors, "aesthetic"), WAN.index)
    text = str(report)
    assert text.startswith("aesthetic: 5 of 5 modules on Wan")
    assert "spelling: peft" in text
    assert "rank 2; scale 2.0 (alpha 4 / rank 2, adapter_config.json)" in text
    assert "not used: 2 text-encoder keys" in text
    assert len(text.splitlines()) <= 6
