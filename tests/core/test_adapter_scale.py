"""Where alpha is looked for, in order, and what it comes to."""

import json
import math

import pytest
import torch
from diffusion_blend.blend_core.adapters import read_adapter
from diffusion_blend.blend_core.errors import BlendError

from .lora_worlds import pair, write

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def adapter_with(folder, *, alpha=None, header=None, peft=None, lora_config=None, tensors=None, **options):
    """A rank-2 LoRA on MODULE, with alpha stated wherever the test wants it."""
    tensors = dict(tensors or pair(MODULE))
    if alpha is not None:
        tensors[f"{MODULE}.alpha"] = alpha
    if peft is not None:
        (folder / "adapter_config.json").write_text(json.dumps(peft))
    if lora_config is not None:
        (folder / "lora_config.json").write_text(json.dumps({"lora_params": lora_config}))
    metadata = {"lora_adapter_metadata": json.dumps(header)} if header is not None else None
    return read_adapter(write(folder / "adapter_model.safetensors", tensors, metadata), **options)


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(8), torch.tensor(8.0), torch.tensor(8.0, dtype=torch.bfloat16), torch.tensor([8.0])],
    ids=["int", "float", "bf16", "one element"],
)
def test_alpha_beside_the_module_comes_first(tmp_path, alpha):
    adapter = adapter_with(tmp_path, alpha=alpha, header={"lora_alpha": 2}, peft={"lora_alpha": 2})
    assert adapter.modules[MODULE].factors.scale == 4.0
    assert adapter.scale_source == "scale 4.0 (alpha 8 / rank 2, .alpha in the file)"


@pytest.mark.parametrize("prefix", ["unet.", "transformer.", ""])
def test_the_header_comes_second(tmp_path, prefix):
    header = {f"{prefix}lora_alpha": 4, f"{prefix}r": 2, "text_encoder.lora_alpha": 100}
    adapter = adapter_with(tmp_path, header=header, peft={"lora_alpha": 16, "r": 2})
    assert adapter.modules[MODULE].factors.scale == 2.0
    assert "safetensors header" in adapter.scale_source


def test_a_header_for_the_text_encoder_alone_is_no_source(tmp_path):
    adapter = adapter_with(tmp_path, header={"text_encoder.lora_alpha": 64}, peft={"lora_alpha": 4, "r": 2})
    assert adapter.scale_source == "scale 2.0 (alpha 4 / rank 2, adapter_config.json)"


def test_lora_config_comes_fourth(tmp_path):
    adapter = adapter_with(tmp_path, lora_config={"lora_rank": 2, "lora_alpha": 4})
    assert adapter.scale_source == "scale 2.0 (alpha 4 / rank 2, lora_config.json)"


def test_no_source_means_scale_1_and_says_where_peft_would_keep_alpha(tmp_path):
    adapter = adapter_with(tmp_path)
    assert adapter.modules[MODULE].factors.scale == 1.0
    assert "adapter_config.json, which would have to be in the same folder" in adapter.scale_source
    assert str(tmp_path) not in adapter.scale_source


def test_the_kohya_header_is_no_source(tmp_path):
    tensors = {"lora_unet_a.lora_down.weight": torch.ones(2, 8), "lora_unet_a.lora_up.weight": torch.ones(8, 2)}
    adapter = read_adapter(write(tmp_path / "k.safetensors", tensors, {"ss_network_alpha": "64"}))
    assert adapter.scale_source == "scale 1.0 (no alpha found)"


def test_rslora_divides_by_the_root_of_the_rank(tmp_path):
    adapter = adapter_with(tmp_path, peft={"lora_alpha": 4, "r": 2, "use_rslora": True})
    assert math.isclose(adapter.modules[MODULE].factors.scale, 4 / math.sqrt(2))
    assert "sqrt(rank 2)" in adapter.scale_source


def test_alpha_pattern_matches_as_peft_does_at_the_end_of_the_path(tmp_path):
    peft = {"lora_alpha": 2, "r": 2, "alpha_pattern": {"attn2.to_k": 8, "to_": 100}}
    adapter = adapter_with(tmp_path, peft=peft, tensors={**pair(MODULE), **pair(OTHER)})
    assert adapter.modules[OTHER].factors.scale == 4.0
    assert adapter.modules[MODULE].factors.scale == 1.0
    assert "mixed per module" in adapter.scale_source


def test_the_pattern_rule_is_pefts_own(tmp_path):
    matching = pytest.importorskip("peft.utils.other").get_pattern_key
    patterns = {"attn2.to_k": 8.0, "mid_block.*to_q": 16.0, "k": 32.0, r".*\.0\.attn1\.to_[qk]": 6.0}
    peft = {"lora_alpha": 2, "r": 2, "alpha_pattern": patterns}
    adapter = adapter_with(tmp_path, peft=peft, tensors={**pair(MODULE), **pair(OTHER)})
    for module in (MODULE, OTHER):
        assert adapter.modules[module].factors.scale == patterns.get(matching(patterns, module), 2) / 2


def test_the_rank_is_the_tensors_and_a_config_that_disagrees_is_reported(tmp_path):
    adapter = adapter_with(tmp_path, peft={"lora_alpha": 8, "r": 64})
    assert adapter.modules[MODULE].factors.scale == 4.0
    assert "says rank 64" in adapter.notes[0]


def test_rank_pattern_explains_a_rank_that_differs(tmp_path):
    tensors = {**pair(MODULE), **pair(OTHER, rank=4)}
    peft = {"lora_alpha": 4, "r": 2, "rank_pattern": {"to_k": 4}}
    adapter = adapter_with(tmp_path, peft=peft, tensors=tensors)
    assert adapter.ranks == (2, 4)
    assert adapter.modules[OTHER].factors.scale == 1.0
    assert adapter.notes == ()


def test_a_typed_scale_overrides_every_source(tmp_path):
    adapter = adapter_with(tmp_path, alpha=torch.tensor(8.0), peft={"lora_alpha": 64}, scale=0.5)
    assert adapter.modules[MODULE].factors.scale == 0.5
    assert adapter.scale_source == "scale 0.5 (typed)"


def test_a_config_beside_several_files_is_pointed_out(tmp_path):
    write(tmp_path / "another.safetensors", pair(MODULE))
    adapter = adapter_with(tmp_path, peft={"lora_alpha": 4, "r": 2})
    assert "2 weight files" in adapter.notes[0]


# --- a config that lies beside a file


STRAY = {"r": 32, "lora_alpha": 64, "target_modules": ["to_q", "to_k"], "peft_type": "LORA"}


def test_a_config_is_not_for_a_foreign_file_beside_it(tmp_path):
    """models/loras with somebody's adapter_config.json in it."""
    write(tmp_path / "adapter_model.safetensors", pair(MODULE, rank=32))
    (tmp_path / "adapter_config.json").write_text(json.dumps(STRAY))
    foreign = read_adapter(write(tmp_path / "foreign.safetensors", pair(MODULE, rank=16)))
    assert foreign.modules[MODULE].factors.scale == 1.0
    (note,) = foreign.notes
    assert "says rank 32, and the file has 16" in note and "type the scale" in note
    assert read_adapter(tmp_path / "adapter_model.safetensors").modules[MODULE].factors.scale == 2.0


def test_a_config_is_not_for_a_foreign_file_that_is_alone_with_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(STRAY))
    adapter = read_adapter(write(tmp_path / "foreign.safetensors", pair(MODULE, rank=16)))
    assert adapter.modules[MODULE].factors.scale == 1.0


def test_a_config_is_not_for_a_file_of_its_rank_with_other_targets(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(STRAY))
    tensors = {**pair(MODULE, rank=32), **pair("mid_block.ff.net.2", rank=32)}
    adapter = read_adapter(write(tmp_path / "foreign.safetensors", tensors))
    assert adapter.modules[MODULE].factors.scale == 1.0
    assert "the file has 'mid_block.ff.net.2'" in adapter.notes[0]


def test_a_config_is_for_a_file_of_any_name_that_agrees_with_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(STRAY))
    write(tmp_path / "another.safetensors", pair(MODULE, rank=4))
    adapter = read_adapter(write(tmp_path / "renamed.safetensors", pair(MODULE, rank=32)))
    assert adapter.modules[MODULE].factors.scale == 2.0


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"},
        {"peft_type": "LORA", "use_dora": True, "r": 32, "lora_alpha": 64},
        {"peft_type": "LORA", "init_lora_weights": "pissa", "r": 32, "lora_alpha": 64},
        {"r": 32, "lora_alpha": "a lot"},
    ],
)
def test_a_stray_config_of_another_method_stops_no_other_file(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    write(tmp_path / "another.safetensors", pair(MODULE, rank=4))
    assert read_adapter(write(tmp_path / "lora.safetensors", pair(MODULE))).modules[MODULE].factors.scale == 1.0


def test_a_stray_lora_config_is_not_for_a_foreign_file(tmp_path):
    (tmp_path / "lora_config.json").write_text('{"lora_params": {"lora_rank": 128, "lora_alpha": 256}}')
    write(tmp_path / "another.safetensors", pair(MODULE, rank=128))
    assert read_adapter(write(tmp_path / "foreign.safetensors", pair(MODULE))).modules[MODULE].factors.scale == 1.0


def test_mixed_ranks_without_alpha_have_scale_1(tmp_path):
    tensors = {**pair(MODULE, rank=2), **pair(OTHER, rank=5)}
    adapter = read_adapter(write(tmp_path / "mixed.safetensors", tensors))
    assert {change.factors.scale for change in adapter.modules.values()} == {1.0}


def test_where_alpha_is_missing_the_scale_is_1_and_elsewhere_what_alpha_says(tmp_path):
    tensors = {**pair(MODULE, rank=2), **pair(OTHER, rank=4), f"{OTHER}.alpha": torch.tensor(2.0)}
    adapter = read_adapter(write(tmp_path / "mixed.safetensors", tensors))
    assert (adapter.modules[MODULE].factors.scale, adapter.modules[OTHER].factors.scale) == (1.0, 0.5)


def test_a_scale_below_0_is_typed(tmp_path):
    tensors = {**pair(MODULE), f"{MODULE}.alpha": torch.tensor(-2.0)}
    path = write(tmp_path / "negative.safetensors", tensors)
    with pytest.raises(BlendError, match="type the scale, which may be negative"):
        read_adapter(path)
    assert read_adapter(path, scale=-1.0).modules[MODULE].factors.scale == -1.0


@pytest.mark.parametrize(
    ("header", "key", "said"),
    [
        ({"software": '{"name": "ai-toolkit", "version": "0.7"}'}, "transformer.{}", False),
        (None, "diffusion_model.{}", False),
        (None, "base_model.model.{}", True),
        (None, "transformer.{}", True),
    ],
)
def test_where_peft_keeps_alpha_is_said_of_files_that_peft_may_have_written(tmp_path, header, key, said):
    tensors = {key.format(name): tensor for name, tensor in pair(MODULE).items()}
    adapter = read_adapter(write(tmp_path / "lora.safetensors", tensors, header))
    assert ("adapter_config.json" in adapter.scale_source) is said


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_an_alpha_that_is_not_positive_raises(tmp_path, alpha):
    with pytest.raises(BlendError, match="expected a positive number"):
        adapter_with(tmp_path, alpha=torch.tensor(alpha))


@pytest.mark.parametrize("alpha", [0, -4, "64"])
def test_an_unusable_alpha_in_a_config_raises(tmp_path, alpha):
    with pytest.raises(BlendError, match=r"adapter_config\.json: alpha is"):
        adapter_with(tmp_path, peft={"lora_alpha": alpha, "r": 2})


def test_an_alpha_of_several_numbers_raises(tmp_path):
    with pytest.raises(BlendError, match="expected one number"):
        adapter_with(tmp_path, alpha=torch.ones(2))


def test_a_scale_typed_as_nan_raises(tmp_path):
    with pytest.raises(BlendError, match="expected a finite number"):
        adapter_with(tmp_path, scale=math.nan)


def test_a_config_that_is_no_json_raises(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(BlendError, match="not valid JSON"):
        adapter_with(tmp_path)


def test_a_pattern_that_is_no_regular_expression_raises(tmp_path):
    with pytest.raises(BlendError, match="no regular expression"):
        adapter_with(tmp_path, peft={"lora_alpha": 2, "r": 2, "alpha_pattern": {"(": 4}})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": "LORA", "use_dora": True}, "says DoRA"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "changed the base"),
    ],
)
def test_a_config_of_another_method_is_refused_by_name(tmp_path, config, words):
    with pytest.raises(BlendError, match=words):
        adapter_with(tmp_path, peft={**config, "lora_alpha": 4, "r": 2})
