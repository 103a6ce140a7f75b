"""The toy studio's rewards: calm pictures, vivid pictures, pictures faithful to their prompt.

Scores are normalised by the base model's own samples, (raw - mean) / std * scale; the scale makes the bases move about
equally far at one KL weight. Two of them conflict: what makes a picture vivid makes its JPEG larger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...blend_core import BlendError
from ...blend_core.rewards import Card, Reward, colourfulness, jpeg_compressibility
from . import MARK, STUDIO
from .data import draw, random_labels
from .scorer import Classifier, labels_of_prompt, load_classifier, share_read

JUDGE_WIDTH = 32
DRAWN_AT_ONCE = 100  # pictures are drawn large and made small: more at once take memory and no less time
Score = Callable[[Tensor, Sequence[str]], Tensor]


class ToyReward(Reward):
    """The normalised score (raw - mean) / std * scale; its gradient is that of a smooth stand-in of the same spread."""

    def __init__(
        self,
        name: str,
        raw: Score,
        surrogate: Score,
        mean: float = 0.0,
        std: float = 1.0,
        scale: float = 1.0,
        surrogate_std: float = 1.0,
    ):
        """raw: the exact score. surrogate: its differentiable stand-in for training. Both give (batch,)."""
        super().__init__(Card(name, "what the toy studio calls so", (-3, 3), reads_prompt=name == "faithful"))
        self.name, self.raw, self.surrogate = name, raw, surrogate
        self.mean, self.std, self.scale, self.surrogate_std = mean, std, scale, surrogate_std

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,), exact in value."""
        exact = self.raw(images.detach(), prompts)
        if images.requires_grad:
            smooth = self.surrogate(images, prompts) * (self.std / self.surrogate_std)
            exact = exact + smooth - smooth.detach()
        return (exact - self.mean) / self.std * self.scale


def toy_rewards(scorer: Classifier | None = None, folder: Path = STUDIO) -> dict[str, ToyReward]:
    """The three rewards by name, normalised where the studio's statistics exist."""
    faithful = _faithful(scorer or load_classifier())
    raw = {
        "calm": (lambda images, _: jpeg_compressibility(images), lambda images, _: -jpeg_bits(images)),
        "vivid": (lambda images, _: colourfulness(images), lambda images, _: colourfulness(images)),
        "faithful": (faithful, faithful),
    }
    settings, spreads = (_read(folder / name) for name in ("rewards.json", "surrogates.json"))
    spread = {name: {"surrogate_std": value} for name, value in spreads.items()}
    return {
        name: ToyReward(name, *scores, **settings.get(name, {}), **spread.get(name, {})) for name, scores in raw.items()
    }


class Judge(Reward):
    """The share of a prompt's attributes that a classifier reads in the picture; it never served as a reward."""

    def __init__(self, classifier: Classifier):
        super().__init__(Card("judge", "colour, shape, background and texture read as prompted", (0, 1), False, True))
        self.classifier = classifier

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,) in [0, 1]."""
        return share_read(self.classifier, images, prompts)


class Nearest(Reward):
    """How far a picture is from the training data: it grows when a reward is hacked, which the judge does not see.

    The root mean square over pixels and channels of the difference, images in [0, 1], to the nearest of `count`
    pictures that the training data's own drawing makes for the very prompt; what a prompt leaves open is drawn at
    random. A smaller number is a nearer picture. Not 0 for pictures of the data: place, size and tints vary without
    steps, and `count` drawings do not fill that range.
    """

    def __init__(self, count: int = 1500, seed: int = 5):
        super().__init__(Card("nn", "distance to the nearest training picture of the prompt", (0, 1), False, True))
        self.count, self.seed = count, seed
        self._drawn: dict[str, Tensor] = {}

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch,), 0 or more."""
        squares = [
            (self.drawn(prompt).to(image.device) - image).square().mean((1, 2, 3)).min()
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return torch.stack(squares).sqrt()

    def drawn(self, prompt: str) -> Tensor:
        """The pictures of a prompt, (count, 3, 32, 32), the same ones whenever they are asked for."""
        if prompt not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            parts = []
            for first in range(0, self.count, DRAWN_AT_ONCE):
                size = min(DRAWN_AT_ONCE, self.count - first)
                labels = random_labels(size, generator)
                labels |= {name: torch.full((size,), label) for name, label in labels_of_prompt(prompt).items()}
                parts.append(draw(labels, generator))
            self._drawn[prompt] = torch.cat(parts)
        return self._drawn[prompt]


def toy_watched() -> dict[str, Reward]:
    """Scores that tell what rewards do not, and that nothing is trained towards, by name."""
    return {"judge": Judge(load_classifier(STUDIO / "judge.safetensors", JUDGE_WIDTH)), "nn": Nearest()}


def toy_reward(name: str) -> Reward:
    """The reward, or the score that is only watched, of a name such as toy:calm. Raises BlendError for another one."""
    rewards: dict[str, Reward] = {**toy_rewards(), **toy_watched()}
    if name.removeprefix(MARK) not in rewards:
        listed = ", ".join(f"{MARK}{known}" for known in rewards)
        raise BlendError(f"the reward {name!r} is unknown, the toy studio's are {listed}. Correct rewards.names.")
    return rewards[name.removeprefix(MARK)]


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _faithful(scorer: Classifier) -> Score:
    def faithful(images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean over the attributes that a prompt names of log p / (1 - p), p the scorer's probability of the word.

        Odds, because log p alone is 0 for nearly every sample of the base: nothing would be left to gain.
        """
        odds = {name: _log_odds(logits) for name, logits in scorer(images).items()}
        named = [labels_of_prompt(prompt) for prompt in prompts]
        return torch.stack([_mean_of_named(odds, i, labels) for i, labels in enumerate(named)])

    return faithful


def _log_odds(logits: Tensor) -> Tensor:
    """log p / (1 - p) of every class, from logits (batch, classes): logit minus the logsumexp of the others."""
    classes = logits.shape[1]
    others = logits[:, None].masked_fill(torch.eye(classes, dtype=torch.bool), -math.inf)
    return logits - others.logsumexp(-1)


def _mean_of_named(odds: dict[str, Tensor], image: int, labels: dict[str, int]) -> Tensor:
    return torch.stack([odds[name][image, label] for name, label in labels.items()]).mean()


def jpeg_bits(images: Tensor) -> Tensor:
    """A smooth stand-in for a JPEG's size, (batch,): sum of log2(1 + |c| / q) over its quantised DCT coefficients.

    images (batch, 3, h, w) in [0, 1], h and w multiples of 16; luma in full, chroma at half resolution.
    """
    red, green, blue = (images * 255).unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = F.avg_pool2d(torch.stack([blue - luma, red - luma], 1) * torch.tensor([0.564, 0.713]).view(1, 2, 1, 1), 2)
    planes = [luma, chroma[:, 0], chroma[:, 1]]
    return sum(torch.log2(1 + _dct_blocks(plane - plane.mean((1, 2), True)).abs() / 3).sum((1, 2)) for plane in planes)


def _dct_blocks(plane: Tensor) -> Tensor:
    """(batch, h, w) -> (batch, blocks, 64) orthonormal 8 x 8 DCT coefficients."""
    k = torch.arange(8.0)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) * 0.5
    basis[0] /= math.sqrt(2)
    blocks = F.unfold(plane[:, None], 8, stride=8).transpose(1, 2).unflatten(-1, (8, 8))
    return (basis @ blocks @ basis.T).flatten(2)
