"""LoRA files of every spelling for every family: each key finds its weight, and what cannot be used is said."""

import pytest
import torch
from safetensors.torch import load_file

from . import loras, spellings
from .every_family import EVERY
from .families import named
from .host import submodule

SMALL = [family for family in EVERY if spellings.count(family)]


@pytest.mark.parametrize("family", SMALL, ids=[family.name for family in SMALL])
def test_every_key_of_every_spelling_finds_its_weight(family, tmp_path, nodes):
    if family.missing:
        pytest.skip(f"{family.name} is not in this ComfyUI")
    adapters, model = submodule("blend_core.adapters"), family.load()
    index = submodule("nodes.host.apply").target_index(model.model)
    files = list(spellings.written(family, model, tmp_path))
    assert len(files) == spellings.count(family)
    expected = {}
    for spelling, lora, file in files:
        resolved, report = adapters.resolve(adapters.read_adapter(file), index)
        assert report.matched == report.in_file == len(lora.factors), spelling
        assert not report.left_out, spelling
        if lora.label not in expected:
            expected[lora.label] = _probed_deltas(lora)
        assert_same_deltas(resolved, expected[lora.label], spelling)


def _probe(columns: int) -> torch.Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(columns))


def _probed_deltas(lora) -> dict:
    """What each weight's delta makes of a random vector, by module and rows."""
    return {
        (module, rows): delta.flatten(1) @ _probe(delta[0].numel())
        for module, of_module in lora.deltas().items()
        for rows, delta in of_module.items()
    }


def assert_same_deltas(resolved, expected, spelling):
    places = set()
    for target, change in resolved.items():
        factors = change.factors
        place = (target.module.removeprefix("diffusion_model."), target.rows or (0, target.shape[0]))
        down = factors.down.flatten(1)
        result = factors.scale * factors.up @ (down @ _probe(down.shape[1]))
        assert torch.allclose(result, expected[place], atol=1e-5), (spelling, place)
        places.add(place)
    assert places == expected.keys(), spelling


TEXT_ENCODER_KEYS = {
    "SD 1.5": "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
    "SDXL": "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight",
    "SD3": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight",
    "Flux": "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_{}.weight",
    "Wan 2.1": "text_encoders.umt5xxl.transformer.shared.lora_{}.weight",
}


@pytest.mark.parametrize("name", TEXT_ENCODER_KEYS)
def test_text_encoder_keys_are_counted_and_left_out(name, tmp_path, nodes):
    family, core = named(name), submodule("blend_core.adapters")
    model = family.load()
    lora = loras.random_lora("with_text", family.own_layers(model)[:2], rank=1, alpha=1.0, seed=3)
    loras.write_native(lora, tmp_path)
    template = TEXT_ENCODER_KEYS[name]
    text = {template.format(role): torch.ones(2, 2) for role in ("down", "up")}
    mixed = load_file(tmp_path / "with_text.safetensors") | text
    adapter = core.read_adapter(tmp_path / loras.save(mixed, tmp_path, "mixed.safetensors"))
    _, report = core.resolve(adapter, submodule("nodes.host.apply").target_index(model.model))
    assert report.matched == report.in_file == 2
    assert "2 text-encoder keys" in str(report)
    with pytest.raises(submodule("blend_core").BlendError, match=r"only text-encoder keys \(2.*UNet or transformer"):
        core.read_adapter(tmp_path / loras.save(text, tmp_path, "text.safetensors"))
