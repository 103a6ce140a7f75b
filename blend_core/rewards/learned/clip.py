"""Rewards on CLIP: how well an image fits its prompt (CLIPScore, PickScore, HPSv2), and the LAION aesthetic heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BlendError
from ..contract import Card, Reward, frozen
from ..files import RewardFile, read_state_dict
from .networks import filled, square, starting
from .preprocessing import CLIP_MEAN, CLIP_STD, cropped, cropped_low, normalised, padded
from .text import CLIP_FILES, Tokens, clip_tokens

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

CLIP_L = RewardFile("openai/clip-vit-large-patch14", "model.safetensors")
VISION = ("vision_model.", "visual_projection.")


def vit_l_14() -> CLIPConfig:
    """OpenAI's ViT-L/14 at 224 pixels."""
    return _config(768, (1024, 4096, 24, 16), (768, 3072, 12, 12), "quick_gelu")


def vit_h_14() -> CLIPConfig:
    """LAION's ViT-H/14 at 224 pixels; it has the exact GELU, which OpenAI's models have not."""
    return _config(1024, (1280, 5120, 32, 16), (1024, 4096, 24, 16), "gelu")


def _config(projection: int, vision: tuple[int, ...], text: tuple[int, ...], activation: str) -> CLIPConfig:
    from transformers import CLIPConfig

    def tower(width, inner, layers, heads, **more):
        sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
        return sizes | {"num_attention_heads": heads, "hidden_act": activation, "projection_dim": projection} | more

    return CLIPConfig(
        vision_config=tower(*vision, patch_size=14, image_size=224), text_config=tower(*text), projection_dim=projection
    )


class ClipSimilarity(Reward):
    """factor * cosine of the image's and the prompt's embedding; factor None: exp(logit_scale), as trained."""

    def __init__(
        self,
        card: Card,
        network: CLIPModel,
        tokens: Tokens,
        factor: float | None,
        pixels: Callable[[Tensor, int], Tensor] = cropped,
    ):
        super().__init__(card)
        self.network, self.tokens, self.factor, self.pixels = network, tokens, factor, pixels
        self.size = square(network.vision_model.config.image_size)
        self.activation_bytes = activation_bytes(network.vision_model.config)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        distinct = list(dict.fromkeys(prompts))
        ids, _ = self.tokens(distinct, self.place())  # attention is causal: padding after the end changes nothing
        text = unit(self.network.get_text_features(input_ids=ids))[[distinct.index(prompt) for prompt in prompts]]
        image = unit(self.network.get_image_features(pixel_values=clip_input(self, self.size, images, self.pixels)))
        factor = self.network.logit_scale.to(image.dtype).exp() if self.factor is None else self.factor
        return factor * (image * text).sum(-1)


class Aesthetic(Reward):
    """An affine head on the unit-length CLIP embedding of the image; no prompt."""

    def __init__(self, card: Card, network: CLIPVisionModelWithProjection, head: nn.Linear):
        super().__init__(card)
        self.network, self.head, self.size = network, head, square(network.config.image_size)
        self.activation_bytes = activation_bytes(network.config)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        embedding = unit(self.network(pixel_values=clip_input(self, self.size, images, cropped)).image_embeds)
        return affine(self.head, embedding)


def clip_input(reward: Reward, size: int, images: Tensor, pixels: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What CLIP's vision tower takes, in the weights' dtype."""
    return normalised(pixels(images, size), CLIP_MEAN, CLIP_STD).to(next(reward.parameters()).dtype)


def unit(features) -> Tensor:
    """Features at length 1, (batch, width), float32 at least: in half precision scores would move in visible steps."""
    features = getattr(features, "pooler_output", features)  # transformers 5 wraps the tensor that 4 returned
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def affine(head: nn.Linear, embedding: Tensor) -> Tensor:
    """head(embedding), (batch,), in the embedding's dtype whatever the weights have."""
    return F.linear(embedding, head.weight.to(embedding.dtype), head.bias.to(embedding.dtype)).squeeze(-1)


def activation_bytes(config) -> int:
    """About what one image needs inside a vision tower: one layer's states, attention and inner states in float32."""
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    return 4 * tokens * (8 * config.hidden_size + 2 * config.intermediate_size)


def folded(state: Mapping[str, Tensor], width: int) -> nn.Linear:
    """Linear(width, 1) equal to a chain of linear layers with no activations between, as all these heads are.

    state: names that end in `weight` or `bias`, numbered in the chain's order, or those two alone.
    """
    names = sorted((n.removesuffix("weight") for n in state if n.endswith("weight")), key=_number)
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for name in names:
        layer, shift = state[f"{name}weight"].double(), state.get(f"{name}bias")
        if layer.dim() != 2 or layer.shape[1] != len(weight) or shift is None:
            names = []
            break
        weight, bias = layer @ weight, layer @ bias + shift.double()
    if not names or len(weight) != 1 or 2 * len(names) != len(state):
        raise BlendError(
            f"the head's file is no chain of linear layers from {width} features to 1 score; it holds "
            f"{', '.join(list(state)[:4]) or 'nothing'}. Get the file that the reward names."
        )
    head = nn.Linear(width, 1)
    head.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return frozen(head)


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by transformers' names, from open_clip's or transformers' own."""
    if "visual.conv1.weight" not in state:
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        renamed |= _from_open_clip(name, value)
    return renamed


_OPEN_CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # sic
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def _from_open_clip(name: str, value: Tensor) -> dict[str, Tensor]:
    """One of open_clip's entries by transformers' names; the three projections of attention come apart."""
    if name in _PROJECTIONS:
        return {_PROJECTIONS[name]: value.T.contiguous()}
    if name == "attn_mask":  # open_clip's causal mask, a buffer
        return {}
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    block = re.fullmatch(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    prefix, rest = (f"{tower}.encoder.layers.{block[1]}.", block[2]) if block else ("", name)
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{part}_proj.{kind}": v for part, v in zip("qkv", value.chunk(3), strict=True)}
    stem, _, kind = rest.rpartition(".")
    if rest in _OPEN_CLIP:
        return {prefix + _OPEN_CLIP[rest]: value}
    return {f"{prefix}{_OPEN_CLIP.get(stem, stem)}.{kind}" if stem else prefix + rest: value}


Build = Callable[[Card, Sequence[Path]], Reward]


def _similarity(config: Callable[[], CLIPConfig], factor: float | None, pixels=cropped) -> Build:
    """Files: weights, vocab.json, merges.txt."""

    def build(card: Card, paths: Sequence[Path]) -> Reward:
        from transformers import CLIPModel

        network = filled(CLIPModel, config(), clip_state(read_state_dict(paths[0])))
        return ClipSimilarity(card, network, clip_tokens(paths[1].parent), factor, pixels)

    return build


def _aesthetic(card: Card, paths: Sequence[Path]) -> Reward:
    """Files: CLIP-L, the head."""
    from transformers import CLIPVisionModelWithProjection

    config = vit_l_14().vision_config
    network = filled(CLIPVisionModelWithProjection, config, starting(read_state_dict(paths[0]), VISION))
    return Aesthetic(card, network, folded(read_state_dict(paths[1]), network.config.projection_dim))


def _prompted(name: str, measures: str, usual_range: tuple[float, float], licence: str, file: RewardFile) -> Card:
    return Card(name, measures, usual_range, True, True, licence, (file, *CLIP_FILES))


def _head(name: str, measures: str, licence: str, url: str) -> Card:
    repository, filename = url.split("/raw/")[0].removeprefix("https://github.com/"), url.rpartition("/")[2]
    head = RewardFile(repository, filename.replace("%2B", "+"), url)
    return Card(name, measures, (4.0, 7.5), licence=licence, files=(CLIP_L, head))


REWARDS: tuple[tuple[Card, Build], ...] = (
    (
        _prompted("clipscore", "fit to the prompt: 100 * cosine of CLIP-L/14", (15.0, 35.0), "MIT", CLIP_L),
        _similarity(vit_l_14, 100.0),
    ),
    (
        _prompted(
            "pickscore",
            "people's preference, prompt aware (Pick-a-Pic)",
            (17.0, 24.0),
            "see the model card (code MIT)",
            RewardFile("yuvalkirstain/PickScore_v1", "model.safetensors"),
        ),
        _similarity(vit_h_14, None, cropped_low),
    ),
    *(
        (
            _prompted(
                f"hpsv{version}",
                f"people's preference, prompt aware (HPD v{version})",
                (0.14, 0.34),
                "Apache-2.0",
                RewardFile("xswu/HPSv2", file),
            ),
            _similarity(vit_h_14, 1.0, padded),
        )
        for version, file in (("2.1", "HPS_v2.1_compressed.pt"), ("2", "HPS_v2_compressed.pt"))
    ),
    (
        _head(
            "aesthetic",
            "beauty, 1 to 10 (LAION's aesthetic predictor v2)",
            "Apache-2.0",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
            "sac%2Blogos%2Bava1-l14-linearMSE.pth",
        ),
        _aesthetic,
    ),
    (
        _head(
            "aesthetic_v1",
            "beauty, 1 to 10 (LAION's aesthetic predictor v1)",
            "MIT",
            "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        ),
        _aesthetic,
    ),
)
