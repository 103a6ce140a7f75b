"""One tiny LoRA in all sixteen spellings, on hosts shaped like ComfyUI's maps."""

import pytest
import torch
from diffusion_blend.blend_core.adapters import read_adapter, resolve
from diffusion_blend.blend_core.adapters.names.spelling import canonical, is_text_encoder, parse

from .lora_worlds import FLUX, HOSTS, SD3, SD15, SPELLINGS, WAN, spelled, tensors_for, write

UNIVERSAL = [spelling for spelling in SPELLINGS if spelling != "15 XLabs"]


def assert_plain_factors(resolved, pairs):
    by_module = {target.module: change.factors for target, change in resolved.items()}
    assert len(by_module) == len(pairs)
    for weight, (down, up) in pairs.items():
        factors = by_module[weight.target.module]
        assert torch.equal(factors.down, down)
        assert torch.equal(factors.up, up.flatten(1))
        assert factors.scale == 1.0


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
@pytest.mark.parametrize("spelling", UNIVERSAL)
def test_every_spelling_gives_the_same_factors_on_every_host(tmp_path, host, spelling):
    pairs = tensors_for(host.plain)
    adapter = read_adapter(write(tmp_path / "tiny.safetensors", spelled(pairs, spelling)))
    resolved, report = resolve(adapter, host.index)
    assert_plain_factors(resolved, pairs)
    assert (report.matched, report.in_file) == (len(pairs), len(pairs))
    assert report.family == host.name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_flux_reads_all_sixteen_spellings_of_its_attention(tmp_path, spelling):
    pairs = tensors_for(FLUX.plain)
    resolved, _ = resolve(read_adapter(write(tmp_path / "tiny.safetensors", spelled(pairs, spelling))), FLUX.index)
    assert_plain_factors(resolved, pairs)


@pytest.mark.parametrize("host", (SD3, FLUX, WAN, SD15), ids=lambda host: host.name)
@pytest.mark.parametrize("spelling", UNIVERSAL)
def test_a_diffusers_host_reads_native_names_too(tmp_path, host, spelling):
    pairs = tensors_for(host.plain)
    resolved, _ = resolve(
        read_adapter(write(tmp_path / "tiny.safetensors", spelled(pairs, spelling))), host.diffusers_index
    )
    by_module = {target.module: change.factors for target, change in resolved.items()}
    for weight, (down, _) in pairs.items():
        assert torch.equal(by_module[weight.diffusers].down, down)


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("1 diffusers to 0.21", "diffusers up to 0.21"),
        ("4 diffusers with peft names", "diffusers with peft names"),
        ("5 peft", "peft"),
        ("6 peft state dict", "peft state dict"),
        ("7 wrapped", "wrappers"),
        ("8 no prefix", "no prefix"),
        ("9 kohya", "kohya (diffusers names)"),
        ("10 kohya native", "kohya (LDM names)"),
        ("11 OneTrainer", "OneTrainer"),
        ("12 LyCORIS", "LyCORIS"),
        ("13 ComfyUI native", "ComfyUI-native"),
        ("14 two underscores", "two underscores"),
        ("15 XLabs", "XLabs Flux"),
        ("16 BFL", "BFL Flux"),
    ],
)
def test_the_spelling_is_named_in_words(tmp_path, spelling, words):
    pairs = tensors_for([weight for weight in FLUX.plain if "img_attn" in weight.native])
    adapter = read_adapter(write(tmp_path / "tiny.safetensors", spelled(pairs, spelling)))
    assert words in adapter.spelling


def test_prefixes_drop_in_any_order_and_number():
    plain = "down_blocks_0_attn1_to_q"
    for name in (
        "module.base_model.model.unet.down_blocks.0.attn1.to_q",
        "unet.base_model.model.module.down_blocks.0.attn1.to_q",
        "_orig_mod.down_blocks.0._orig_mod.attn1.to_q",
        "model.diffusion_model.down_blocks.0.attn1.to_q",
        "lora_unet_down_blocks_0_attn1_to_q",
        "pipe.unet.down_blocks.0.attn1.processor.to_q",
    ):
        assert canonical(name) == plain


def test_transformer_blocks_is_no_prefix():
    assert canonical("transformer.transformer_blocks.0.attn.to_q") == "transformer_blocks_0_attn_to_q"


def test_processor_to_out_means_to_out_0_and_flux_2_keeps_its_own():
    assert canonical("a.attn1.processor.to_out") == "a_attn1_to_out_0"
    assert canonical("single_transformer_blocks.0.attn.to_out") == "single_transformer_blocks_0_attn_to_out"


def test_text_encoder_keys_are_told_from_the_network():
    for key in (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    ):
        assert is_text_encoder(key)
    assert not is_text_encoder("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight")


def test_keys_that_are_no_lora_are_not_parsed():
    assert parse("conv_in.weight") is None
    assert parse("lora_unet_x.oft_blocks") is None
    assert parse("x.lora_B.default.bias.weight") is None


@pytest.mark.parametrize(
    ("suffix", "role", "adapter"),
    [
        (".hada_w1_a", "hada_w1_a", None),
        (".hada_t2.default", "hada_t2", "default"),
        (".lokr_w1", "lokr_w1", None),
        (".lokr_w2_b", "lokr_w2_b", None),
        (".dora_scale", "dora_scale", None),
        (".lora_magnitude_vector", "magnitude", None),
        (".lora_magnitude_vector.weight", "magnitude", None),
        (".lora_magnitude_vector.default.weight", "magnitude", "default"),
        (".lora_B.bias", "bias", None),
        (".lora_B.default.bias", "bias", "default"),
        (".lora_up.bias", "bias", None),
        (".lora.up.bias", "bias", None),
        (".diff", "diff", None),
        (".w_norm", "diff", None),
        (".diff_b", "diff_b", None),
        (".b_norm", "diff_b", None),
        (".bias.diff", "diff_b", None),
        (".magnitude", "magnitude", None),
        (".lora_down.default.weight", "down", "default"),
        (".lora_up.v1.5.weight", "up", "v1.5"),
        (".lora_A.v1.5.weight", "down", "v1.5"),
        (".lora_A.scale_weight", "down_scale", None),
        (".lora_up.scale_weight", "up_scale", None),
    ],
)
def test_roles_of_other_kinds_than_lora(suffix, role, adapter):
    key = parse("diffusion_model.mid_block.attn1.to_q" + suffix)
    assert (key.module, key.role, key.adapter) == ("mid_block.attn1.to_q", role, adapter)


def test_lightx2vs_difference_of_a_modulation_is_of_the_parameter_of_this_name():
    key = parse("diffusion_model.blocks.0.diff_m")
    assert (key.module, key.role) == ("blocks.0.modulation", "diff")
    assert parse("diffusion_model.blocks.0.modulation.diff").module == key.module


@pytest.mark.parametrize(
    "spelling",
    ["lora_unet_blocks_0.{}", "lora_unet__blocks_0.{}", "lora_unet_blocks.0.{}"],
)
def test_names_half_with_dots_and_half_with_underscores_find_their_weights(tmp_path, spelling):
    """kijai/ComfyUI-WanVideoWrapper#869: keys that no tool's own reader takes."""
    pairs = tensors_for(WAN.plain)
    tensors = {}
    for weight, (down, up) in pairs.items():
        stem = spelling.format(weight.native.removeprefix("blocks.0."))
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    resolved, _ = resolve(read_adapter(write(tmp_path / "mixed.safetensors", tensors)), WAN.index)
    assert_plain_factors(resolved, pairs)
