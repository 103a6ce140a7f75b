"""Parameters of any kind, and names of other code bases than the host's."""

import pytest
import torch
from diffusion_blend.blend_core.adapters import Target, TargetIndex, read_adapter, resolve
from diffusion_blend.blend_core.adapters.names.renames import diffusers_names, native_names, read_table
from diffusion_blend.blend_core.errors import BlendError

from .lora_worlds import FLUX, WAN, pair, spelled, tensors_for, write

H = 8


def read(folder, tensors, name="file"):
    return read_adapter(write(folder / f"{name}.safetensors", tensors))


def built(target, change):
    """The difference of a target's own rows."""
    return change.delta.built((target.height, *target.shape[1:]), change.delta.tensors)


# --- parameters


def parameter(name, *shape):
    module, _, attribute = name.rpartition(".")
    return Target(module, shape, parameter=attribute)


def with_parameters():
    """A block with a modulation, a norm whose scale is a bare parameter, a transposed convolution, and a number."""
    layers = {
        "net.blocks.0.q": Target("net.blocks.0.q", (H, H)),
        "net.up": Target("net.up", (H, 3, 2, 2)),
        "net.embedding": Target("net.embedding", (5, H)),
    }
    names = {
        "net.blocks.0.modulation": (1, 6, H), "net.blocks.0.q.bias": (H,), "net.up.bias": (3,), "net.norm.scale": (H,),
        "net.norm.bias": (H,), "net.alpha": (),
    }  # fmt: skip
    return TargetIndex(layers, {name: parameter(name, *shape) for name, shape in names.items()})


def test_differences_of_parameters_find_them(tmp_path):
    tensors = {
        "net.blocks.0.modulation.diff": torch.randn(1, 6, H),
        "net.norm.scale.diff": torch.randn(H),
        "net.embedding.diff": torch.randn(5, H),
        "net.alpha.diff": torch.randn(()),
    }
    resolved, report = resolve(read(tmp_path, tensors), with_parameters())
    assert report.matched == 4
    assert {(target.module, target.parameter) for target in resolved} == {
        ("net.blocks.0", "modulation"), ("net.norm", "scale"), ("net.embedding", "weight"), ("net", "alpha"),
    }  # fmt: skip
    for target, change in resolved.items():
        name = f"{target.module}.{target.parameter}".removesuffix(".weight")
        assert torch.equal(built(target, change).flatten(), tensors[f"{name}.diff"].flatten())


@pytest.mark.parametrize("key", ["net.blocks.0.q.bias.diff", "net.blocks.0.q.diff_b"])
def test_a_difference_of_a_bias_goes_with_the_layers_weight(tmp_path, key):
    bias = torch.randn(H)
    resolved, _ = resolve(read(tmp_path, {**pair("net.blocks.0.q"), key: bias}), with_parameters())
    ((target, change),) = resolved.items()
    assert (target.module, target.parameter) == ("net.blocks.0.q", "weight")
    assert torch.equal(change.bias, bias)


def test_a_transposed_convolutions_bias_has_a_number_per_output(tmp_path):
    resolved, _ = resolve(read(tmp_path, {"net.up.bias.diff": torch.ones(3)}), with_parameters())
    assert list(resolved) == [Target("net.up", (H, 3, 2, 2))]
    with pytest.raises(BlendError, match=r"8 numbers.*the model's layer 3"):
        resolve(read(tmp_path, {"net.up.bias.diff": torch.ones(H)}), with_parameters())


def test_a_bias_beside_no_layers_weight_is_a_parameter_of_its_own(tmp_path):
    tensors = {"net.norm.bias.diff": torch.randn(H)}
    resolved, _ = resolve(read(tmp_path, tensors), with_parameters())
    ((target, change),) = resolved.items()
    assert target == parameter("net.norm.bias", H)
    assert torch.equal(built(target, change), tensors["net.norm.bias.diff"])


def test_a_parameter_of_another_shape_is_refused(tmp_path):
    with pytest.raises(BlendError, match=r"\(1, 6, 9\), the model's weight \(1, 6, 8\)"):
        resolve(read(tmp_path, {"net.blocks.0.modulation.diff": torch.ones(1, 6, 9)}), with_parameters())


def test_a_layer_and_a_parameter_of_one_flat_name_are_the_layer():
    layer = Target("a.b_c", (H, H))
    assert TargetIndex({"a.b_c": layer}, {"a.b.c": parameter("a.b.c", H)}).find("a_b_c") == (layer,)


# --- names of other code bases


def test_a_table_is_read_with_its_marks():
    (double, single, same, ends) = read_table(
        """
        [blocks.# = transformer_blocks.#]
            qkv = to_q^ to_k^ to_v^ mlp
            mod =~ norm.linear
            norm1
        [adaln_single = time_embed]
            *
        """
    )
    assert double.native == "blocks_#_qkv"
    assert [(part.name.rpartition("#_")[2], part.widths) for part in double.parts] == [
        ("to_q", 1), ("to_k", 1), ("to_v", 1), ("mlp", None),
    ]  # fmt: skip
    assert (single.swap, single.parts[0].name) == (True, "transformer_blocks_#_norm_linear")
    assert (same.native, same.parts[0].name) == ("blocks_#_norm1", "transformer_blocks_#_norm1")
    assert (ends.native, ends.parts[0].name) == ("adaln_single_*", "time_embed_*")


def test_tables_go_both_ways():
    table = read_table("[blocks.# = layers.#]\n qkv = q^ kv\n out =~ last\n [x = y]\n *")
    whole, out, rest = (Target(name, (24, H)) for name in ("blocks.3.qkv", "blocks.3.out", "x.z"))
    to_native = diffusers_names(table, {"blocks_3_qkv": whole, "blocks_3_out": out, "x_z": rest})
    assert to_native == {
        "layers_3_q": (Target("blocks.3.qkv", (24, H), (0, 8)),),
        "layers_3_kv": (Target("blocks.3.qkv", (24, H), (8, 16)),),
        "layers_3_last": (Target("blocks.3.out", (24, H), None, True),),
        "y_z": (rest,),
    }
    q, kv = Target("layers.3.q", (8, H)), Target("layers.3.kv", (16, H))
    assert native_names(table, {"layers_3_q": q, "layers_3_kv": kv}) == {"blocks_3_qkv": (q, kv)}
    assert native_names(table, {"layers_3_q": q}) == {}


def hunyuan_dit():
    """Its norms have the numbers of diffusers' others."""
    names = ["blocks.0.attn1.Wqkv", "blocks.0.norm2", "blocks.0.norm3", "blocks.0.mlp.fc1"]
    return TargetIndex({name: Target(name, (H,) if "norm" in name else (3 * H, H)) for name in names})


def test_a_name_with_two_meanings_is_read_as_the_rest_of_its_file_is(tmp_path):
    native = read(tmp_path, {"blocks.0.norm2.diff": torch.ones(H), **pair("blocks.0.mlp.fc1", out=3 * H)}, "own")
    assert {target.module for target in resolve(native, hunyuan_dit())[0]} == {"blocks.0.norm2", "blocks.0.mlp.fc1"}
    foreign = read(tmp_path, {"blocks.0.norm2.diff": torch.ones(H), **pair("blocks.0.attn1.to_q")}, "foreign")
    targets = sorted(target.module for target in resolve(foreign, hunyuan_dit())[0])
    assert targets == ["blocks.0.attn1.Wqkv", "blocks.0.norm3"]


@pytest.mark.parametrize("name", ["default", None])
def test_diffsynths_rows_of_minimax_are_taken_out_of_their_heads(tmp_path, name):
    heads, head = 2, 4
    layers = {"blocks.0.attn.qkv_proj": Target("blocks.0.attn.qkv_proj", (3 * heads * head, H))}
    norms = {"blocks.0.attn.q_norm": Target("blocks.0.attn.q_norm", (head,))}
    up = torch.arange(3.0 * heads * head)[:, None]
    infix = f".{name}" if name else ""
    tensors = {
        f"blocks.0.attn.qkv_proj.lora_A{infix}.weight": torch.ones(1, H),
        f"blocks.0.attn.qkv_proj.lora_B{infix}.weight": up,
    }
    ((_, change),) = resolve(read(tmp_path, tensors), TargetIndex(layers | norms))[0].items()
    of_heads = [row for first in (0, 4, 8) for row in (*range(first, first + 4), *range(first + 12, first + 16))]
    expected = of_heads if name else list(range(24))
    assert change.factors.up.flatten().tolist() == expected


# --- fused weights of the file, separate ones of the model


def test_a_lora_of_a_fused_weight_is_cut_and_a_kronecker_product_refused(tmp_path):
    lora = read(tmp_path, pair("double_blocks.0.img_attn.qkv", out=3 * H), "lora")
    assert len(resolve(lora, FLUX.diffusers_index)[0]) == 3
    whole = read(tmp_path, {"double_blocks.0.img_attn.qkv.diff": torch.randn(3 * H, H)}, "whole")
    parts = resolve(whole, FLUX.diffusers_index)[0]
    assert len(parts) == 3 and all(change.kind == "whole difference" for change in parts.values())
    product = {
        "double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(3, 1),
        "double_blocks.0.img_attn.qkv.lokr_w2": torch.ones(H, H),
    }
    with pytest.raises(BlendError, match=r"Kronecker product .* 3 \(transformer_blocks\.0\.attn\.to_q"):
        resolve(read(tmp_path, product, "product"), FLUX.diffusers_index)


# --- words


def test_names_that_look_like_the_models_own_are_said_to(tmp_path):
    adapter = read(tmp_path, pair("blocks.7.self_attn.q"))
    with pytest.raises(BlendError, match="They look like Wan, as this model does, but none of these names is in it"):
        resolve(adapter, WAN.index)


def test_the_hosts_word_for_its_architecture_comes_first(tmp_path):
    index = TargetIndex({"double_blocks.0.img_attn.proj": Target("double_blocks.0.img_attn.proj", (H, H))},
                        family="HunyuanVideo")  # fmt: skip
    _, report = resolve(read(tmp_path, pair("double_blocks.0.img_attn.proj")), index)
    assert str(report).startswith("file: 1 of 1 modules on HunyuanVideo")


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("double_blocks.0.img_attn.proj", "Flux"),
        ("txt_in.individual_token_refiner.blocks.0.mlp.0", "Hunyuan Video"),
        ("context_embedder.token_refiner.refiner_blocks.0.ff.net.2", "Hunyuan Video"),
        ("blocks.0.attn1.Wqkv", "Hunyuan DiT"),
        ("blocks.0.self_attn.q_proj", "unknown family"),
        ("blocks.0.self_attn.output_proj", "Cosmos Predict 2"),
        ("blocks.0.ff_proj", "CogVideoX"),
        ("layers.0.attention.qkv", "Lumina 2 or Z-Image"),
    ],
)
def test_families_are_told_apart_by_their_names(tmp_path, module, family):
    with pytest.raises(BlendError, match=f"They look like {family};"):
        resolve(read(tmp_path, pair(module)), TargetIndex({"down_blocks.0.resnets.0.conv1": Target("x", (H, 768))}))


def test_every_spelling_of_wans_attention_is_one_place(tmp_path):
    pairs = tensors_for(WAN.plain)
    for spelling in ("12 LyCORIS", "11 OneTrainer", "10 kohya native"):
        resolved, _ = resolve(read(tmp_path, spelled(pairs, spelling), spelling[:2].strip()), WAN.index)
        assert {target.module for target in resolved} == {weight.target.module for weight in pairs}
