"""Small classifiers of the toy pictures: one serves as a reward, another of other shape and seed judges the samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from . import STUDIO
from .data import WORDS, draw, random_labels


class Classifier(nn.Module):
    """Four convolutions and one linear head per attribute; images (batch, 3, 32, 32) in [0, 1]."""

    def __init__(self, width: int = 24):
        super().__init__()
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        layers = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=1 if before == 3 else 2), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(channels[-1] * 16, len(words)) for name, words in WORDS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (batch, classes) per attribute."""
        features = self.body(images * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}


def train_classifier(seed: int, width: int, steps: int = 700) -> Classifier:
    """Trained on drawn pictures, blurred and noised a little so that it reads generated ones too."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(width)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in trange(steps, desc=f"classifier {seed}", mininterval=5):
        labels = random_labels(64, generator)
        logits = model(_roughened(draw(labels, generator), generator))
        loss = sum(F.cross_entropy(logits[name], labels[name]) for name in WORDS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return model.eval().requires_grad_(False)


def _roughened(images: Tensor, generator: torch.Generator) -> Tensor:
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = 0.06 * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = noise * torch.randn(images.shape, generator=generator)
    return (images + share * (blurred - images) + noise).clamp(0, 1)


def labels_of_prompt(prompt: str) -> dict[str, int]:
    """The attributes that a prompt names, as class numbers."""
    named = prompt.lower().split()
    return {name: words.index(word) for name, words in WORDS.items() for word in words if word in named}


def accuracy(classifier: Classifier, images: Tensor, prompts: list[str]) -> dict[str, float]:
    """The share of images whose named attributes the classifier reads as named, per attribute."""
    logits = classifier(images)
    hits: dict[str, list[bool]] = {name: [] for name in WORDS}
    for i, prompt in enumerate(prompts):
        for name, label in labels_of_prompt(prompt).items():
            hits[name].append(int(logits[name][i].argmax()) == label)
    return {name: sum(of_name) / len(of_name) for name, of_name in hits.items() if of_name}


def share_read(classifier: Classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """(n,): of each image, the share of its prompt's named attributes that the classifier reads as named.

    1 for a prompt that names none.
    """
    read = {name: logits.argmax(1) for name, logits in classifier(images).items()}
    hits = [
        [float(read[name][i] == label) for name, label in labels_of_prompt(prompt).items()] or [1.0]
        for i, prompt in enumerate(prompts)
    ]
    return torch.tensor([sum(of_image) / len(of_image) for of_image in hits])


def save_classifier(model: Classifier, path: Path, width: int) -> None:
    """Write the weights in float16."""
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, path, {"width": str(width)})


def load_classifier(path: Path = STUDIO / "scorer.safetensors", width: int = 24) -> Classifier:
    """The classifier that `save_classifier` wrote."""
    model = Classifier(width)
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)
