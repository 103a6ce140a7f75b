"""Objects as the prompt asks for them, found by OWLv2, a detector of whatever words name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..composition import COLOURS, Box, Wanted, repeated, shown_share, wanted_objects
from ..contract import Card, Reward
from ..files import RewardFile, read_state_dict
from .clip import activation_bytes
from .networks import filled, square
from .preprocessing import CLIP_MEAN, CLIP_STD, normalised
from .text import CLIP_FILES, Tokens, clip_tokens

if TYPE_CHECKING:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2VisionConfig

TOKENS = 16  # OWLv2's longest text
THRESHOLD = 0.2  # probability from which a box counts; of the published demonstrations, not calibrated here
SAME = 0.5  # overlap (intersection over union) from which two boxes are one object


def base_16() -> Owlv2Config:
    """OWLv2 base/16 at 960 pixels."""
    from transformers import Owlv2Config

    return Owlv2Config(vision_config={"image_size": 960})


class PromptedObjects(Reward):
    """GenEval's questions to the boxes of an open-vocabulary detector, with Flow-GRPO's partial credit.

    GenEval itself takes a detector of COCO's 80 classes and CLIP for colours. Here one network, OWLv2 (arXiv
    2306.09683), finds any noun, and tells a box's colour by which colour's words fit it best.
    """

    def __init__(self, card: Card, network: Owlv2ForObjectDetection, tokens: Tokens):
        super().__init__(card)
        self.network, self.tokens = network, tokens
        vision = _vision(network)
        self.size, self.activation_bytes = square(vision.image_size), activation_bytes(vision)

    def one_per_image(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        """As any reward's; raises BlendError for a prompt that is not of GenEval's form too."""
        prompts = super().one_per_image(prompts, count)
        for prompt in dict.fromkeys(prompts):
            wanted_objects(prompt)
        return prompts

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,) in [0, 1]; no gradient."""
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            wanted = wanted_objects(prompt)
            scores.append(shown_share(wanted, self.boxes_of(image, wanted)))
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def boxes_of(self, image: Tensor, wanted: Sequence[Wanted]) -> list[list[Box]]:
        """The boxes of every wanted object in an image (3, height, width), in its pixels.

        Of a noun that is asked for in several colours each colour has its own boxes.
        """
        nouns = list(dict.fromkeys(want.noun for want in wanted))
        coloured = list(dict.fromkeys(want.noun for want in wanted if want.colour))
        texts = [f"a photo of a {noun}" for noun in nouns]
        texts += [f"a photo of a {colour} {noun}" for noun in coloured for colour in COLOURS]
        logits, corners = self.detected(image, texts)
        probability, noun_of = logits[:, : len(nouns)].sigmoid().max(-1)
        colours = logits[:, len(nouns) :].unflatten(-1, (-1, len(COLOURS))).argmax(-1) if coloured else None
        boxes: dict[str, list[Box]] = {}
        for number, noun in enumerate(nouns):
            places = ((noun_of == number) & (probability > THRESHOLD)).nonzero().flatten()
            places = places[separate(corners[places], probability[places])].tolist()
            if colours is not None and noun in coloured:
                names = [COLOURS[colours[place, coloured.index(noun)]] for place in places]
            else:
                names = [""] * len(places)
            boxes[noun] = [_box(corners[place], name) for place, name in zip(places, names, strict=True)]
        several = repeated(wanted)
        return [
            [box for box in boxes[want.noun] if want.noun not in several or box.colour == want.colour]
            for want in wanted
        ]

    def detected(self, image: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits (patches, texts), boxes (patches, 4): left, top, right, bottom in the image's pixels; on the CPU."""
        weights = next(self.network.parameters())
        pixels = normalised(whole(image[None], self.size), CLIP_MEAN, CLIP_STD).to(weights.dtype)
        ids, mask = self.tokens(texts, weights.device)
        output = self.network(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        middle, size = output.pred_boxes[0].float().chunk(2, -1)
        corners = torch.cat([middle - size / 2, middle + size / 2], -1) * max(image.shape[-2:])
        return output.logits[0].float().cpu(), corners.cpu()


def _box(corners: Tensor, colour: str) -> Box:
    left, top, right, bottom = corners.tolist()
    return Box((left, top, right, bottom), colour)


def whole(images: Tensor, size: int) -> Tensor:
    """Black below or to the right up to a square, then to `size`, bilinear: OWLv2's preprocessing."""
    height, width = images.shape[-2:]
    side = max(height, width)
    padded = F.pad(images, (0, side - width, 0, side - height))
    return F.interpolate(padded, (size, size), mode="bilinear", antialias=True, align_corners=False)


def separate(corners: Tensor, probability: Tensor) -> list[int]:
    """Which boxes (count, 4) stand for an object: of those that overlap the most probable, which come first."""
    kept: list[int] = []
    for place in probability.argsort(descending=True).tolist():
        if all(overlap(corners[place], corners[other]) < SAME for other in kept):
            kept.append(place)
    return kept


def overlap(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two boxes (4,); 0 where neither has an area."""
    extent = (torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])).clamp(min=0)
    common = extent.prod().item()
    union = sum((box[2:] - box[:2]).clamp(min=0).prod().item() for box in (first, second)) - common
    return common / union if union > 0 else 0.0


def build(card: Card, paths: Sequence[Path]) -> Reward:
    """Files: OWLv2, and the two of CLIP's tokenizer."""
    from transformers import Owlv2ForObjectDetection

    network = filled(Owlv2ForObjectDetection, base_16(), read_state_dict(paths[0]), compute=_place_boxes)
    return PromptedObjects(card, network, clip_tokens(paths[1].parent, TOKENS))


def _place_boxes(network: Owlv2ForObjectDetection) -> None:
    """Where the box of every patch begins."""
    vision = _vision(network)
    side = square(vision.image_size) // square(vision.patch_size)
    network.register_buffer("box_bias", network.compute_box_bias(side, side), persistent=False)


def _vision(network: Owlv2ForObjectDetection) -> Owlv2VisionConfig:
    from transformers import Owlv2VisionConfig

    vision = network.config.vision_config
    assert isinstance(vision, Owlv2VisionConfig)  # transformers also takes a dictionary, and makes it one
    return vision


CARD = Card(
    "geneval",
    "objects, their number, colour and place, as the prompt asks for them",
    (0.0, 1.0),
    differentiable=False,
    reads_prompt=True,
    licence="Apache-2.0 (OWLv2)",
    files=(RewardFile("google/owlv2-base-patch16-ensemble", "model.safetensors"), *CLIP_FILES),
)
REWARDS = ((CARD, build),)
