"""Weights of every learned reward, tiny and random, in files of the authors' names and transformers' spelling."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

import torch
from diffusion_blend.blend_core.rewards import Library
from diffusion_blend.blend_core.rewards.learned import blip, clip, owl, siglip
from safetensors.torch import save_file
from transformers import (
    BlipTextModel,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SiglipVisionModel,
)

END = 49407  # CLIP's end token, which its text tower looks for


def small_clip(projection, vision, text, activation):
    """clip._config with towers of two layers."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"hidden_act": activation, "projection_dim": 8}
    return CLIPConfig(
        vision_config=small | {"patch_size": 14, "image_size": 28}, text_config=dict(small), projection_dim=8
    )


def shrink(monkeypatch) -> None:
    """Make every learned reward's network tiny."""
    vision, text, tower = blip.vision_config(), blip.text_config(), siglip.so400m()
    for config in (vision, text, tower):
        config.hidden_size, config.intermediate_size = 16, 32
        config.num_hidden_layers, config.num_attention_heads = 2, 2
    vision.image_size, vision.patch_size, tower.image_size, tower.patch_size = 32, 16, 28, 14
    text.encoder_hidden_size, text.vocab_size = 16, len(bert_words())
    monkeypatch.setattr(clip, "_config", small_clip)
    monkeypatch.setattr(blip, "vision_config", lambda: vision)
    monkeypatch.setattr(blip, "text_config", lambda: text)
    monkeypatch.setattr(siglip, "so400m", lambda: tower)
    monkeypatch.setattr(owl, "base_16", small_owl)


def small_owl() -> Owlv2Config:
    """owl.base_16 with towers of two layers."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Owlv2Config(text_config=small, vision_config=small | {"image_size": 64}, projection_dim=16)


def bert_words() -> list[str]:
    """A vocabulary of single letters."""
    letters = string.ascii_lowercase + string.digits + ",."
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]


def write_library(folder: Path) -> Library:
    """All files, where the rewards look for them. Call after `shrink`."""
    torch.manual_seed(5)
    _write_tokenizers(folder)
    for name, config in (("clip-vit-large-patch14", clip.vit_l_14()), ("PickScore_v1", clip.vit_h_14())):
        _save(lively(CLIPModel(config)), folder / name / "model.safetensors")
    hps = lively(CLIPModel(clip.vit_h_14()))
    for version in ("2.1", "2"):
        place = folder / f"hpsv{version}" / f"HPS_v{version}_compressed.pt"
        place.parent.mkdir()
        torch.save({"epoch": 3, "state_dict": hps}, place)
    for name, file in (("aesthetic", "sac+logos+ava1-l14-linearMSE"), ("aesthetic_v1", "sa_0_4_vit_l_14_linear")):
        place = folder / name / f"{file}.pth"
        place.parent.mkdir()
        torch.save(_head("layers.", [8, 6, 4, 1] if name == "aesthetic" else None), place)
    vision = lively(BlipVisionModel(blip.vision_config()))
    text = lively(BlipTextModel(blip.text_config(), add_pooling_layer=False))
    state = {**{_official(n): v for n, v in vision.items()}, **{blip.TEXT + n: v for n, v in text.items()}}
    _save(state | _head("mlp.layers.", [16, 8, 1]), folder / "imagereward" / "ImageReward.safetensors")
    tower = {
        siglip.TOWER + name.removeprefix(siglip.TOWER): value
        for name, value in lively(SiglipVisionModel(siglip.so400m())).items()
    }
    _save(tower, folder / "siglip-so400m-patch14-384" / "model.safetensors")
    place = folder / "aesthetic_v2.5" / "aesthetic_predictor_v2_5.pth"
    place.parent.mkdir()
    torch.save(_head("scoring_head.", [16, 8, 1]), place)
    _save(lively(Owlv2ForObjectDetection(owl.base_16())), folder / "owlv2-base-patch16-ensemble" / "model.safetensors")
    return Library((folder,))


def lively(network: torch.nn.Module) -> dict:
    """The network's weights made large: at their usual start an image hardly moves a score."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return network.state_dict()


def _save(state, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def _head(prefix: str, widths: list[int] | None) -> dict:
    """Linear layers at even places, as between dropouts; None: one layer of width 8 without a number."""
    if widths is None:
        return {"weight": torch.randn(1, 8), "bias": torch.randn(1)}
    return {
        f"{prefix}{2 * i}.{kind}": torch.randn(*shape)
        for i, (inner, outer) in enumerate(itertools.pairwise(widths))
        for kind, shape in (("weight", (outer, inner)), ("bias", (outer,)))
    }


def _official(name: str) -> str:
    if name.startswith("post_layernorm."):
        return f"{blip.VISION}norm.{name.removeprefix('post_layernorm.')}"
    for theirs, ours in blip._VISION_NAMES:
        name = name.replace(ours, theirs)
    return blip.VISION + name


def _write_tokenizers(folder: Path) -> None:
    clip_folder, bert_folder = folder / "clip-vit-large-patch14", folder / "bert-base-uncased"
    clip_folder.mkdir(parents=True)
    bert_folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [f"unused{i}" for i in range(END - 1 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    (clip_folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (clip_folder / "merges.txt").write_text("#version: 0.2\n")
    (bert_folder / "vocab.txt").write_text("\n".join(bert_words()))
