"""ImageReward (arXiv 2304.05977): BLIP's vision tower read by a cross-attending BERT, and an affine head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...errors import BlendError
from ..contract import Card, Reward
from ..files import RewardFile, read_state_dict
from .clip import activation_bytes, affine, clip_input, folded
from .networks import PLACES, filled, square
from .preprocessing import cropped
from .text import BERT_FILE, Tokens, bert_tokens

if TYPE_CHECKING:
    from transformers import BlipTextModel, BlipVisionModel
    from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's values on the authors' data

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # contrastive heads, which scoring does not reach
_VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def vision_config() -> BlipVisionConfig:
    """BLIP's ViT-L/16 at 224 pixels."""
    from transformers.models.blip.configuration_blip import BlipVisionConfig

    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        layer_norm_eps=1e-6,  # the default loads too, and gives other scores
    )


def text_config() -> BlipTextConfig:
    """BERT-base whose layers also attend to the vision tower."""
    from transformers.models.blip.configuration_blip import BlipTextConfig

    return BlipTextConfig(
        vocab_size=30524,
        hidden_size=768,
        encoder_hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,  # the default, 8, loads too, and gives other scores
        max_position_embeddings=512,
        is_decoder=True,  # makes the cross-attention; the call below still reads in both directions
    )


class ImageReward(Reward):
    """(head(first text state) - mean) / std, the text states having read the image."""

    def __init__(self, card: Card, vision: BlipVisionModel, text: BlipTextModel, head: nn.Linear, tokens: Tokens):
        super().__init__(card)
        self.vision, self.text, self.head, self.tokens = vision, text, head, tokens
        self.size = square(vision.config.image_size)
        self.activation_bytes = 2 * activation_bytes(vision.config)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,)"""
        ids, mask = self.tokens(prompts, self.place())
        seen = self.vision(pixel_values=clip_input(self, self.size, images, cropped)).last_hidden_state
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state[:, 0]
        return (affine(self.head, read.to(images.dtype)) - MEAN) / STD


def imagereward_parts(state: Mapping[str, Tensor]) -> tuple[dict, dict, dict]:
    """The official file's tensors by the names of BlipVisionModel, BlipTextModel and the head.

    Raises BlendError for a tensor that belongs to none of them.
    """
    vision, text, head, strangers = {}, {}, {}, []
    for name, value in state.items():
        if name.startswith(VISION):
            vision[_vision_name(name.removeprefix(VISION))] = value
        elif name.startswith(TEXT):
            text[name.removeprefix(TEXT)] = value
        elif name.startswith(HEAD):
            head[name.removeprefix(HEAD)] = value
        elif not name.startswith(UNUSED) and not name.endswith(PLACES):
            strangers.append(name)
    if strangers:
        raise BlendError(
            f"the file holds {len(strangers)} tensors that ImageReward does not have ({', '.join(strangers[:3])}). "
            "Get ImageReward.pt from the repository that the reward names."
        )
    return vision, text, head


def _vision_name(name: str) -> str:
    if name.startswith("norm."):
        return f"post_layernorm.{name.removeprefix('norm.')}"
    for theirs, ours in _VISION_NAMES:
        name = name.replace(theirs, ours)
    return name


def build(card: Card, paths: Sequence[Path]) -> Reward:
    """Files: weights, vocab.txt."""
    from transformers import BlipTextModel, BlipVisionModel

    vision, text, head = imagereward_parts(read_state_dict(paths[0]))
    return ImageReward(
        card,
        filled(BlipVisionModel, vision_config(), vision),
        filled(BlipTextModel, text_config(), text, add_pooling_layer=False),
        folded(head, text_config().hidden_size),
        bert_tokens(paths[1].parent),
    )


CARD = Card(
    "imagereward",
    "people's preference and fit to the prompt (ImageReward)",
    (-2.3, 2.0),
    True,
    True,
    "Apache-2.0",
    (RewardFile("THUDM/ImageReward", "ImageReward.pt"), BERT_FILE),
)
REWARDS = ((CARD, build),)
