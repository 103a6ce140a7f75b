"""Spellings there and back, and a tuned network cut down to a LoRA."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.blend_core import read_adapter
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.lab.cli import main
from diffusion_blend.pipelines import load_base, network_of
from diffusion_blend.trainers.files.convert import by_module, carried, reduced, spelled
from diffusion_blend.trainers.files.lora import save_lora
from peft import LoraConfig
from safetensors.torch import save_file

from .worlds import save, unet


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save("sd15", tmp_path_factory.mktemp("base") / "sd15")


def lora_network(rank=4, alpha=8):
    """A network with a stirred LoRA whose scale is not 1."""
    network = unet()
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "conv1"]))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return network


def deltas(adapter, network):
    return {
        name: factors.scale * (factors.up.double() @ factors.down.double().flatten(1))
        for name, factors in by_module(adapter, network).items()
    }


def test_every_spelling_holds_the_same_deltas_and_a_scale_of_one(tmp_path):
    from peft.utils import get_peft_model_state_dict

    network = lora_network()
    first = tmp_path / "peft.safetensors"
    state = {f"base_model.model.{key}": value.contiguous() for key, value in get_peft_model_state_dict(network).items()}
    config = '{"r": 4, "lora_alpha": 8}'
    save_file(state, first, {"lora_adapter_metadata": config, "diffusion_blend.kl_weight": "0.5"})
    expected = deltas(read_adapter(first), unet())
    assert expected and all(delta.abs().max() > 0 for delta in expected.values())
    layer = dict(network.named_modules())["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    ours = expected["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    torch.testing.assert_close(ours.float(), layer.get_delta_weight("default"))  # rank 4, alpha 8: scale 2
    path = first
    for spelling in ("kohya", "diffusers", "peft", "kohya"):
        adapter = read_adapter(path)
        path = tmp_path / f"to_{spelling}.safetensors"
        save_lora(path, spelled(by_module(adapter, unet()), spelling), carried(adapter.metadata))
        again = read_adapter(path)
        assert again.metadata["diffusion_blend.kl_weight"] == "0.5"
        for name, delta in deltas(again, unet()).items():
            torch.testing.assert_close(delta, expected[name], rtol=1e-6, atol=1e-9)


def test_kohyas_names_need_the_base_to_be_read(tmp_path):
    network = unet()
    path = tmp_path / "kohya.safetensors"
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    save_file({"lora_unet_mid_block_x.lora_down.weight": down, "lora_unet_mid_block_x.lora_up.weight": up}, path)
    with pytest.raises(BlendError, match="Give --base"):
        by_module(read_adapter(path), None)
    with pytest.raises(BlendError):
        by_module(read_adapter(path), network)


def test_a_tuned_network_of_low_rank_change_is_kept_whole_and_the_rest_is_reported():
    base, tuned = unet(), unet()
    tuned.load_state_dict(base.state_dict())
    weights = dict(tuned.state_dict())
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    convolution = "mid_block.resnets.0.conv1.weight"
    change = torch.randn(32, 2) @ torch.randn(2, 32)
    weights[key] = weights[key] + change
    weights[convolution] = weights[convolution] + torch.randn(weights[convolution].shape)
    weights["conv_in.bias"] = weights["conv_in.bias"] + 1
    result = reduced(weights, base, rank=2)
    assert set(result.factors) == {key.removesuffix(".weight"), convolution.removesuffix(".weight")}
    assert result.left_out == ("conv_in.bias",)
    factors = result.factors[key.removesuffix(".weight")]
    torch.testing.assert_close(factors.up @ factors.down, change, rtol=1e-4, atol=1e-4)
    assert result.lost[key.removesuffix(".weight")] < 1e-4 and 0.5 < result.lost_share < 1
    with pytest.raises(BlendError, match="differ in 1 names"):
        reduced({**weights, "other": torch.ones(1)}, base, rank=2)


def test_the_commands_inspect_and_convert(base, tmp_path, capsys):
    network = network_of(load_base(str(base)))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["mid_block.resnets.0.conv1.weight"] += 0.1
    save_file(weights, tmp_path / "tuned.safetensors")
    lora, again = tmp_path / "lora.safetensors", tmp_path / "again.safetensors"
    assert main(["convert", str(tmp_path / "tuned.safetensors"), str(lora), "--rank", "1", "--base", str(base)]) == 0
    assert "0.0% of the change's norm is lost" in capsys.readouterr().out
    assert main(["convert", str(lora), str(again), "--spelling", "diffusers", "--base", str(base)]) == 0
    assert main(["inspect", str(again), "--base", str(base)]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 modules" in said and "kl_weight: not stated" in said
    assert main(["convert", str(lora), str(again), "--rank", "1"]) == 2
    assert "--rank came without --base" in capsys.readouterr().err
