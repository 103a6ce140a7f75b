"""docs/reading.md shows what the nodes say today: its reports are made here, from two files for Wan."""

import re
from dataclasses import replace

import pytest
import torch

from . import host, kinds, loras

PAGE = host.REPOSITORY / "docs" / "reading.md"


@pytest.fixture
def reports(nodes, cases, lora_folder):
    """What Load Reward LoRA, Blend Weights and Apply Blend say of a LoRA in part and of one from a stack."""
    case = cases("Wan 2.1")
    layers = case.family.layers(case.model)
    elsewhere = replace(layers[0], name="blocks.40.self_attn.q", module="blocks.40.self_attn.q")
    faithful = loras.random_lora("faithful", [*layers[:6], elsewhere], rank=8, alpha=8.0, seed=1)
    tensors = loras.pairs(faithful, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight")
    tensors |= {f"diffusion_model.{layer.name}.alpha": torch.tensor(4.0) for layer in faithful.factors}
    tensors |= {f"text_encoder.layers.0.attn.q.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    tensors |= {"global_step": torch.tensor(3000)}
    first = loras.save(tensors, lora_folder, "faithful_high_noise.safetensors")
    vivid = kinds.written(kinds.lokr_whole, layers[2:5], lambda name: f"diffusion_model.{name}", seed=2)
    second = loras.save(vivid, lora_folder, "vivid_high_noise.safetensors")

    options = {"label": "", "kl_weight": 0.02, "scale": 0.0, "allow_partial": True}
    load = nodes["LoadRewardLoRA"].execute(lora_name=first, **options)
    weigh = nodes["BlendWeights"].execute({"lora_0": load.result[0]}, "0.6, 0.4", True, 0.0, [(second, 0.8, 1.0)])
    apply = nodes["ApplyBlend"].execute(case.model, weigh.result[0], "stratified", "auto", 0, 1.1, 20, 10)
    return [output.ui["text"][0] for output in (load, weigh, apply)]


def test_the_page_shows_what_the_nodes_say(reports):
    shown = re.findall(r"^```text\n(.*?)\n```$", PAGE.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)
    assert shown == reports
