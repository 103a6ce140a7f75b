"""Opening files and folders, and everything that is refused on the way to factors."""

import os

import pytest
import torch
from diffusion_blend.blend_core.adapters import adapter_files, is_adapter_file, read_adapter, resolve
from diffusion_blend.blend_core.errors import BlendError
from huggingface_hub import save_torch_state_dict
from torch import nn

from .lora_worlds import SD15, SPELLINGS, assert_same_deltas, deltas, pair, spelled, tensors_for, write

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_ENCODER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def refusal(path, **options):
    with pytest.raises(BlendError) as caught:
        read_adapter(path, **options)
    return str(caught.value)


def refusal_of(folder, tensors, **options):
    return refusal(write(folder / "lora.safetensors", tensors), **options)


class Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


# --- opening


@pytest.mark.parametrize("wrapper", [None, "state_dict", "lora", "module"])
def test_a_pickle_container_of_tensors_is_read_and_unwrapped_once(tmp_path, wrapper):
    tensors = pair(MODULE)
    torch.save(tensors if wrapper is None else {wrapper: tensors, "step": 3}, tmp_path / "lora.bin")
    adapter = read_adapter(tmp_path / "lora.bin")
    assert torch.equal(adapter.modules[MODULE].factors.down, tensors[f"{MODULE}.lora_A.weight"])


def test_a_number_as_alpha_in_a_pickle_container_is_read(tmp_path):
    torch.save({**pair(MODULE), f"{MODULE}.alpha": 4}, tmp_path / "lora.pt")
    assert read_adapter(tmp_path / "lora.pt").modules[MODULE].factors.scale == 2.0


def test_a_folder_with_one_weight_file_is_read_with_its_config(tmp_path):
    write(tmp_path / "aesthetic" / "adapter_model.safetensors", pair(MODULE))
    (tmp_path / "aesthetic" / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 2}')
    torch.save({}, tmp_path / "aesthetic" / "optimizer.bin")
    adapter = read_adapter(tmp_path / "aesthetic")
    assert adapter.label == "aesthetic"
    assert adapter.modules[MODULE].factors.scale == 2.0


def test_the_label_is_the_stem_when_the_stem_says_something(tmp_path):
    assert read_adapter(write(tmp_path / "hps_v2.safetensors", pair(MODULE))).label == "hps_v2"


def test_the_label_passes_over_folders_that_say_nothing(tmp_path):
    path = write(tmp_path / "checkpoint-60" / "lora" / "adapter_model.safetensors", pair(MODULE))
    assert read_adapter(path).label == "checkpoint-60"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_factors_keep_the_dtype_of_the_file(tmp_path, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in pair(MODULE).items()}
    assert read_adapter(write(tmp_path / "lora.safetensors", tensors)).modules[MODULE].factors.down.dtype == dtype


def test_fp8_factors_are_widened_first(tmp_path):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in pair(MODULE).items()}
    factors = read_adapter(write(tmp_path / "lora.safetensors", tensors)).modules[MODULE].factors
    assert torch.equal(factors.down, tensors[f"{MODULE}.lora_A.weight"].float())


def test_factors_do_not_point_into_the_file(tmp_path):
    path = write(tmp_path / "lora.safetensors", pair(MODULE))
    factors = read_adapter(path).modules[MODULE].factors
    before = factors.down.clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(factors.down, before)


def test_the_header_gives_kl_weight_and_rewards(tmp_path):
    metadata = {"diffusion_blend.kl_weight": "0.02", "diffusion_blend.rewards": '[{"name": "hpsv2", "weight": 1}]'}
    adapter = read_adapter(write(tmp_path / "lora.safetensors", pair(MODULE), metadata))
    assert adapter.kl_weight == 0.02
    assert adapter.rewards == ("hpsv2",)


@pytest.mark.parametrize(
    ("rewards", "factor"),
    [
        ('[{"name": "a", "weight": 2, "scale": 4.5}]', 9.0),
        ('[{"name": "a", "weight": 1}]', 1.0),
        ('[{"name": "a", "weight": 1, "scale": 3}, {"name": "b", "weight": 1, "scale": 3}]', 1.0),
        ("aesthetic", 1.0),
    ],
)
def test_the_header_gives_the_factor_of_its_only_reward(tmp_path, rewards, factor):
    metadata = {"diffusion_blend.rewards": rewards}
    assert read_adapter(write(tmp_path / "lora.safetensors", pair(MODULE), metadata)).reward_factor == factor


def test_what_the_header_does_not_state_is_none(tmp_path):
    adapter = read_adapter(write(tmp_path / "lora.safetensors", pair(MODULE)))
    assert adapter.kl_weight is None
    assert adapter.rewards == ()


def test_a_kl_weight_that_is_no_positive_number_raises(tmp_path):
    adapter = read_adapter(write(tmp_path / "l.safetensors", pair(MODULE), {"diffusion_blend.kl_weight": "high"}))
    with pytest.raises(BlendError, match="kl_weight 'high'"):
        _ = adapter.kl_weight


def test_the_list_for_users_leaves_out_training_state_and_reference_copies(tmp_path):
    shown = [tmp_path / "a.safetensors", tmp_path / "nft" / "lora" / "adapter_model.safetensors"]
    hidden = [tmp_path / "nft" / "lora" / "old" / "adapter_model.safetensors"]
    for path in shown + hidden:
        write(path, pair(MODULE))
    for name in ("optimizer.bin", "random_states_0.pt", "random_states_0.pkl", "scheduler.bin", "readme.md"):
        (tmp_path / name).write_bytes(b"x")
    assert adapter_files(tmp_path) == sorted(shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("style/hps.safetensors", True),
        ("pytorch_lora_weights.bin", True),
        ("optimizer.bin", False),
        ("run/random_states_1.pt", False),
        ("adapter_config.json", False),
        (".hidden.safetensors", False),
    ],
)
def test_a_name_alone_tells_training_state_from_adapters(name, shown):
    assert is_adapter_file(name) is shown


# --- files that cannot be opened


def test_a_missing_file_lists_near_names(tmp_path):
    write(tmp_path / "aesthetic_v2.safetensors", pair(MODULE))
    assert "aesthetic_v2.safetensors" in refusal(tmp_path / "aesthetic.safetensors")


def test_a_missing_folder_is_named(tmp_path):
    assert "does not exist either" in refusal(tmp_path / "nowhere" / "lora.safetensors")


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "lora.safetensors").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "lora.safetensors")


def test_a_safetensors_file_without_tensors_says_so(tmp_path):
    assert "holds no tensors" in refusal_of(tmp_path, {})


@pytest.mark.parametrize("keep", [4, 60, -8])
def test_a_truncated_safetensors_file_says_so(tmp_path, keep):
    path = write(tmp_path / "lora.safetensors", pair(MODULE))
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated or not a safetensors file" in refusal(path)


def test_a_truncated_pickle_container_says_so(tmp_path):
    torch.save(pair(MODULE), tmp_path / "lora.bin")
    content = (tmp_path / "lora.bin").read_bytes()
    (tmp_path / "lora.bin").write_bytes(content[: len(content) // 2])
    assert "truncated or not a torch file" in refusal(tmp_path / "lora.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_not_opened(tmp_path, zipped):
    content = {**pair(MODULE), "x": Malicious(tmp_path / "witness")}
    torch.save(content, tmp_path / "lora.bin", _use_new_zipfile_serialization=zipped)
    assert "holds Python objects besides tensors" in refusal(tmp_path / "lora.bin")
    assert not (tmp_path / "witness").exists()


def test_a_pickle_that_names_its_own_sign_of_truncation_is_still_not_opened(tmp_path):
    content = {**pair(MODULE), "truncated": Malicious(tmp_path / "truncated")}
    torch.save(content, tmp_path / "lora.bin")
    assert "lora.bin" in refusal(tmp_path / "lora.bin")
    assert not (tmp_path / "truncated").exists()


def test_a_pkl_file_is_not_opened(tmp_path):
    (tmp_path / "lora.pkl").write_bytes(b"\x80\x04.")
    assert "Convert it to safetensors" in refusal(tmp_path / "lora.pkl")


@pytest.mark.parametrize("start", [b"<!DOCTYPE html><html>", b"\n<html>"])
def test_a_web_page_saved_as_weights_says_so(tmp_path, start):
    (tmp_path / "lora.safetensors").write_bytes(start + b" " * 100)
    assert "is a web page" in refusal(tmp_path / "lora.safetensors")


def test_a_git_lfs_pointer_says_so(tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refusal(tmp_path / "lora.safetensors")


def test_a_pickle_container_with_other_values_names_the_key(tmp_path):
    torch.save({**pair(MODULE), "note": "of the third epoch"}, tmp_path / "lora.bin")
    assert "'note' is a str" in refusal(tmp_path / "lora.bin")


def test_a_folder_with_several_weight_files_lists_them(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, pair(MODULE))
    assert "2 weight files (a.safetensors, b.safetensors)" in refusal(tmp_path)


def test_a_folder_without_a_weight_file_lists_those_below_it(tmp_path):
    write(tmp_path / "lora" / "adapter_model.safetensors", pair(MODULE))
    assert os.path.join("lora", "adapter_model.safetensors") in refusal(tmp_path)


# --- folders and files of trainers


def sharded(folder, tensors):
    """As huggingface_hub saves what is too large for one file."""
    folder.mkdir(exist_ok=True)
    save_torch_state_dict(tensors, folder, filename_pattern="adapter_model{suffix}.safetensors", max_shard_size=400)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name.startswith("adapter_model-00001-of-")
    return files


def test_shards_are_one_lora_whichever_is_named(tmp_path):
    tensors = spelled(tensors_for(SD15.plain), "5 peft")
    whole = resolve(read_adapter(write(tmp_path / "whole.safetensors", tensors)), SD15.index)[0]
    files = sharded(tmp_path / "aesthetic", tensors)
    for path in (tmp_path / "aesthetic", *files):
        adapter = read_adapter(path)
        assert adapter.label == "aesthetic"
        assert_same_deltas(deltas(resolve(adapter, SD15.index)[0]), deltas(whole))
    assert adapter_files(tmp_path / "aesthetic") == files[:1]


def test_a_missing_shard_is_named(tmp_path):
    files = sharded(tmp_path / "aesthetic", spelled(tensors_for(SD15.plain), "5 peft"))
    files[1].unlink()
    for path in (files[0], files[2], tmp_path / "aesthetic"):
        message = refusal(path)
        assert files[1].name in message and "Put all of them into one folder" in message


def test_a_key_in_two_shards_is_refused(tmp_path):
    for name in ("a-00001-of-00002", "a-00002-of-00002"):
        write(tmp_path / f"{name}.safetensors", pair(MODULE))
    assert "both hold" in refusal(tmp_path / "a-00001-of-00002.safetensors")


of_peft = pytest.mark.slow  # importing peft takes longer than all other tests here together


def peft_model(*names):
    """A small network under peft with adapters of these names, each of its own numbers."""
    import peft

    torch.manual_seed(0)
    network = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})
    configs = [
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False) for _ in names
    ]
    model = peft.get_peft_model(network, configs[0], adapter_name=names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    return model


@of_peft
@pytest.mark.parametrize("reference", ["old", "ref"])
@pytest.mark.parametrize("used", ["default", "learner"])
def test_reference_policies_beside_an_adapter_are_passed_over(tmp_path, used, reference):
    """peft writes `default` into the folder itself, adapters of other names into folders beside each other."""
    model = peft_model(used, reference)
    model.save_pretrained(tmp_path)
    expected = model.state_dict()[f"base_model.model.to_q.lora_A.{used}.weight"]
    adapter = read_adapter(tmp_path)
    assert torch.equal(adapter.modules["to_q"].factors.down, expected)
    assert adapter.modules["to_q"].factors.scale == 2.0
    assert len(adapter_files(tmp_path)) == 1


def test_a_reference_policy_alone_is_shown(tmp_path):
    files = [write(tmp_path / "old" / "adapter_model.safetensors", pair(MODULE))]
    assert adapter_files(tmp_path) == files


def test_the_folders_of_two_experts_are_loaded_one_by_one(tmp_path):
    run = tmp_path / "checkpoint-60"
    for name in ("transformer", "transformer_2"):
        write(run / name / "adapter_model.safetensors", pair(MODULE))
    message = refusal(run)
    assert "two networks" in message and os.path.join("transformer_2", "adapter_model.safetensors") in message
    assert read_adapter(run / "transformer").label == "checkpoint-60"
    assert read_adapter(run / "transformer_2").label == "checkpoint-60 transformer_2"


def unirl_checkpoint(path, mode):
    """checkpoint.pt as UniRL's FSDP backend saves it: the state dict under peft's names, and what scale needs."""
    model = peft_model("default", "old")
    state = model.base_model.model.state_dict()  # adapters are put into the network itself, without a wrapper's prefix
    if mode == "adapter":
        state = {key: value for key, value in state.items() if ".lora_" in key}
    else:
        state["norm.weight"] = torch.ones(8)
    torch.save(
        {
            "policy_state_dict": state,
            "lora_config": {"rank": 2, "alpha": 6},
            "optimizer_state_dict": {"state": {0: {"step": 3.0}}, "param_groups": [{"lr": 1e-4}]},
            "step": 500,
            "save_mode": mode,
        },
        path / "checkpoint.pt",
    )
    return state


@of_peft
@pytest.mark.parametrize("mode", ["full", "adapter"])
def test_a_checkpoint_of_unirl_is_read_with_its_alpha(tmp_path, mode):
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    state = unirl_checkpoint(folder, mode)
    adapter = read_adapter(folder)
    assert adapter.label == "checkpoint-500"
    assert sorted(adapter.modules) == ["to_k", "to_q"]
    assert torch.equal(adapter.modules["to_q"].factors.up, state["to_q.lora_B.default.weight"])
    assert adapter.scale_source == "scale 3.0 (alpha 6 / rank 2, lora_config in the checkpoint)"
    left_out = {"keys of adapter 'old'": 4}
    if mode == "full":
        left_out = {"weights of the base, which a LoRA leaves as they are": 5, **left_out}
    assert adapter.skipped == left_out


def test_the_optimizer_of_dancegrpo_is_no_second_weight_file(tmp_path):
    write(tmp_path / "pytorch_lora_weights.safetensors", pair(MODULE))
    (tmp_path / "lora_config.json").write_text('{"step": 60, "lora_params": {"lora_rank": 2, "lora_alpha": 4}}')
    torch.save({"state": {}}, tmp_path / "lora_optimizer.pt")
    adapter = read_adapter(tmp_path)
    assert adapter.modules[MODULE].factors.scale == 2.0
    assert adapter.notes == ()


# --- keys beside a LoRA

HARMLESS = {
    "bundle_emb.charturner.string_to_param.*": torch.ones(2, 8),
    "emb_params": torch.ones(2, 8),
    "global_step": torch.tensor(3),
    "scaled_fp8": torch.zeros(2),
    f"diffusion_model.{MODULE}.scale_weight": torch.tensor(0.5),
    "lora_unet_mid_block_attn1_to_q.alpha": torch.tensor(4.0),
}


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_that_change_no_weight_are_left_out_and_named(tmp_path, key):
    adapter = read_adapter(write(tmp_path / "lora.safetensors", {**pair(MODULE), key: HARMLESS[key]}))
    assert list(adapter.modules) == [MODULE]
    assert list(adapter.skipped.values()) == [1]
    assert "not used: 1 " in adapter.summary


def test_a_trainers_count_of_steps_in_a_pickle_container_is_left_out(tmp_path):
    torch.save({**pair(MODULE), "global_step": 300, "epoch": 2}, tmp_path / "lora.bin")
    assert read_adapter(tmp_path / "lora.bin").skipped == {"counters of a trainer": 2}


def test_keys_of_an_unknown_kind_are_left_out_where_a_part_is_allowed(tmp_path):
    path = write(tmp_path / "lora.safetensors", {**pair(MODULE), "unet.x.scalar": torch.ones(1)})
    assert "allow partial" in refusal(path)
    adapter = read_adapter(path, allow_partial=True)
    assert adapter.skipped == {"unet.x.scalar": "not understood"}


def test_modules_to_save_in_a_whole_network_are_not_taken_for_the_bases_weights(tmp_path):
    tensors = {
        f"{MODULE}.base_layer.weight": torch.ones(8, 8),
        **pair(MODULE),
        "conv_in.modules_to_save.default.weight": torch.ones(2, 2),
    }
    assert "conv_in.modules_to_save" in refusal_of(tmp_path, tensors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_factors_in_eight_bits_are_multiplied_by_their_scales(tmp_path, dtype):
    down, up = pair(MODULE).values()
    parts = {}
    for name, factor in (("lora_down", down), ("lora_up", up)):
        scale = factor.abs().max() / 100
        parts |= {f"lora_unet_a.{name}.weight": (factor / scale).to(dtype), f"lora_unet_a.{name}.scale_weight": scale}
    factors = read_adapter(write(tmp_path / "lora.safetensors", parts)).modules["a"].factors
    assert torch.allclose(factors.down, down, atol=down.abs().max() / 15)  # three bits of mantissa
    assert torch.allclose(factors.up, up, atol=up.abs().max() / 15)


def test_a_difference_of_full_rank_is_taken_where_its_shape_is_the_weights(tmp_path):
    """ai-toolkit's network of type fullrank: a down of the weight's shape, and an up without a tensor."""
    weights = [weight for weight in SD15.plain if weight.diffusers.endswith(("to_q", "conv1"))]
    tensors = {SPELLINGS["4 diffusers with peft names"](weight)[0]: torch.randn(weight.shape) for weight in weights}
    header = {"software": '{"name": "ai-toolkit"}'}
    adapter = read_adapter(write(tmp_path / "full.safetensors", tensors, header))
    assert "peft keeps alpha" not in adapter.scale_source
    resolved, report = resolve(adapter, SD15.index)
    assert report.matched == len(weights) == 2
    assert report.kinds == {"whole difference": 2}
    for (target, change), tensor in zip(resolved.items(), tensors.values(), strict=True):
        assert torch.equal(change.delta.built(target.shape, change.delta.tensors), tensor)


def test_half_a_file_of_pairs_is_no_difference_of_full_rank(tmp_path):
    halves = {key: tensor for key, tensor in pair(SD15.plain[0].diffusers).items() if "lora_A" in key}
    with pytest.raises(BlendError, match=r"\(2, 8\), the model's weight \(8, 8\)"):
        resolve(read_adapter(write(tmp_path / "half.safetensors", halves)), SD15.index)


# --- several adapters, text encoders


def named(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.{MODULE}.lora_A.{name}.weight": torch.randn(2, 8, generator=generator),
        f"base_model.model.{MODULE}.lora_B.{name}.weight": torch.randn(8, 2, generator=generator),
    }


def test_of_several_adapters_the_default_is_taken_and_said(tmp_path):
    default = named("default")
    adapter = read_adapter(write(tmp_path / "lora.safetensors", {**named("old", seed=1), **default}))
    down = default[f"base_model.model.{MODULE}.lora_A.default.weight"]
    assert torch.equal(adapter.modules[MODULE].factors.down, down)
    assert adapter.adapter_name == "default"
    assert adapter.skipped == {"keys of adapter 'old'": 2}
    assert "also holds old" in adapter.notes[0]


def test_several_adapters_without_a_default_raise_with_their_names(tmp_path):
    assert "(learner, old)" in refusal_of(tmp_path, {**named("old"), **named("learner", seed=1)})


def test_an_adapter_is_chosen_by_name(tmp_path):
    old = named("old")
    path = write(tmp_path / "lora.safetensors", {**old, **named("learner", seed=1)})
    adapter = read_adapter(path, adapter_name="old")
    assert torch.equal(adapter.modules[MODULE].factors.down, old[f"base_model.model.{MODULE}.lora_A.old.weight"])


def test_an_adapter_name_the_file_lacks_raises_with_those_it_has(tmp_path):
    assert "it holds learner" in refusal_of(tmp_path, named("learner"), adapter_name="old")


def test_text_encoder_keys_are_counted_and_left_out(tmp_path):
    text = pair(TEXT_ENCODER)
    adapter = read_adapter(write(tmp_path / "lora.safetensors", {**pair(MODULE), **text}))
    assert list(adapter.modules) == [MODULE]
    assert adapter.skipped == {"text-encoder keys": 2}
    assert "not used: 2 text-encoder keys" in adapter.summary


def test_a_file_of_text_encoder_keys_alone_raises(tmp_path):
    assert "holds only text-encoder keys (2" in refusal_of(tmp_path, pair(TEXT_ENCODER))


# --- factors that cannot be what was trained


@pytest.mark.parametrize(("kept", "missing"), [("lora_A", "no up"), ("lora_B", "no down")])
def test_half_a_pair_raises(tmp_path, kept, missing):
    tensors = {key: tensor for key, tensor in pair(MODULE).items() if kept in key}
    assert missing in refusal_of(tmp_path, {**tensors, **pair("mid_block.attn1.to_q")})


def test_alphas_alone_raise(tmp_path):
    assert "no pair of down and up" in refusal_of(tmp_path, {"lora_unet_a.alpha": torch.tensor(1.0)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_raise_with_the_key(tmp_path, value):
    tensors = pair(MODULE)
    tensors[f"{MODULE}.lora_B.weight"][3, 1] = value
    message = refusal_of(tmp_path, tensors)
    assert f"{MODULE}.lora_B.weight" in message
    assert "NaN or inf" in message


def test_integer_factors_raise(tmp_path):
    tensors = {key: tensor.to(torch.int8) for key, tensor in pair(MODULE).items()}
    assert "expected a floating type" in refusal_of(tmp_path, tensors)


def test_factors_of_two_ranks_raise_with_both_shapes(tmp_path):
    tensors = {**pair(MODULE), f"{MODULE}.lora_B.weight": torch.ones(8, 3)}
    message = refusal_of(tmp_path, tensors)
    assert "(2, 8)" in message
    assert "(8, 3)" in message


def test_one_module_in_two_dialects_raises(tmp_path):
    flat = "lora_unet_" + MODULE.replace(".", "_")
    twice = {f"{flat}.lora_down.weight": torch.ones(2, 8), f"{flat}.lora_up.weight": torch.ones(8, 2)}
    assert "names one module twice" in refusal_of(tmp_path, {**pair(MODULE), **twice})


# --- other kinds, by name


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".oft_blocks", "OFT"),
        (".oft_diag", "OFT"),
        (".rescale", "OFT"),
        (".a1.weight", "GLoRA"),
        (".on_input", "IA3"),
        (".set_weight", "a replaced weight"),
        (".lora_embedding_A", "embedding LoRA"),
    ],
)
@pytest.mark.parametrize("beside_lora", [False, True])
def test_other_kinds_are_refused_by_name_and_first_key(tmp_path, suffix, kind, beside_lora):
    key = "lora_unet_mid_block_attn1_to_q" + suffix
    message = refusal_of(tmp_path, {key: torch.ones(2, 2), **(pair(MODULE) if beside_lora else {})})
    assert f"holds {kind}" in message
    assert key in message
    assert "convert it to LoRA" in message


def test_a_constraint_of_oft_is_not_read_as_a_scale(tmp_path):
    tensors = {"lora_unet_a.oft_blocks": torch.ones(2, 2, 2), "lora_unet_a.alpha": torch.tensor(1e-5)}
    assert "OFT" in refusal_of(tmp_path, tensors)


@pytest.mark.parametrize("key", ["base_model.model.conv_in.modules_to_save.weight", "unet.conv_in.weight"])
def test_whole_modules_beside_a_lora_are_refused_with_their_keys(tmp_path, key):
    message = refusal_of(tmp_path, {**pair(MODULE), key: torch.ones(2, 2)})
    assert "whole modules" in message
    assert key in message


def test_keys_of_an_unknown_kind_beside_a_lora_are_refused_not_dropped(tmp_path):
    assert "unknown kind: 'unet.x.scalar'" in refusal_of(tmp_path, {**pair(MODULE), "unet.x.scalar": torch.ones(1)})


@pytest.mark.parametrize(
    "key", ["conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight", "transformer_blocks.0.attn.to_q.weight"]
)
def test_a_full_checkpoint_is_told_to_be_loaded_as_a_model(tmp_path, key):
    assert "this is a full checkpoint: load it as a model" in refusal_of(tmp_path, {key: torch.ones(2, 2)})


def test_a_file_without_lora_keys_shows_its_first_ones(tmp_path):
    assert "holds no LoRA keys; it begins with 'emb_params'" in refusal_of(tmp_path, {"emb_params": torch.ones(2, 2)})
