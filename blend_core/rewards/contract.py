"""What every reward is: a module that scores images, and a card that says what its scores mean."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import BlendError
from .files import RewardFile

MOST_PIXELS = 2**25  # per image: an 8K frame, 7680 x 4320, is just below
IMAGES_PER_PASS = 16
PIXELS_PER_PASS = 2**26

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What a reward says of itself. usual_range: where most scores of generated images lie; None where unknown.

    licence: of the weights.  files: what `load_reward` looks for; none for rewards that are formulas.
    packages: what has to be installed next to torch and transformers, by names that pip and import share.
    """

    name: str
    measures: str
    usual_range: tuple[float, float] | None = None
    differentiable: bool = True
    reads_prompt: bool = False
    licence: str = "no weights"
    files: tuple[RewardFile, ...] = ()
    packages: tuple[str, ...] = ()


class Reward(nn.Module):
    """Base class of rewards. A subclass gives `score`, the formula; calling the reward checks its input first.

    An image's score depends on that image and its prompt alone. Gradients flow from scores to pixels where the card
    says so. Weights are frozen and in eval mode, so a score is the same every time.
    """

    activation_bytes = 0
    """What one image of a pass needs next to the weights, an estimate in bytes."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.eval()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (batch,) of images (batch, 3, height, width) in [0, 1] with one prompt each; input is checked."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, prompts: str | Sequence[str] | None = None, images_per_pass: int | None = None
    ) -> Tensor:
        """One score per image, (batch,), higher is better; float32, or float64 where the reward's weights are.

        images: (batch, 3, height, width) in [0, 1].  prompts: one for all images, or one per image; may be left out
        where the reward does not read it.  images_per_pass: scored at a time; halved where memory runs out.
        Raises BlendError for anything else.
        """
        check_images(images)
        prompts = self.one_per_image(prompts, len(images))
        dtype = self._working_dtype(images)
        images = images.to(self.place() or images.device, dtype)
        size = images_per_pass or max(1, min(IMAGES_PER_PASS, PIXELS_PER_PASS // images[0, 0].numel()))
        size = min(size, len(images))
        scores, done = [], 0
        while done < len(images):
            part = slice(done, done + size)
            try:
                scores.append(self.score(images[part], prompts[part]).to(dtype))
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(1, size // 2)
                log.warning("%s: out of memory; going on with %d images at a time", self.card.name, size)
            else:
                done += size
        return torch.cat(scores)

    def place(self) -> torch.device | None:
        """Where the weights lie; None without weights. (Not a property: ComfyUI sets `device` on models it manages.)"""
        return next((p.device for p in self.parameters()), None)

    def _working_dtype(self, images: Tensor) -> torch.dtype:
        """What pixels come in as and scores go out as: float32 at least, whatever the weights have."""
        stored = next((p.dtype for p in self.parameters()), images.dtype)
        return torch.promote_types(stored, torch.float32)

    def one_per_image(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        """`count` prompts from one for all, one per image, or none. Raises BlendError for anything else."""
        name = self.card.name
        prompts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else list(prompts)
        if len(prompts) == 1:
            prompts *= count
        if len(prompts) != count:
            raise BlendError(
                f"{len(prompts)} prompts came for {count} images. Give one prompt for all of them, or one per image."
            )
        strangers = [type(prompt).__name__ for prompt in prompts if not isinstance(prompt, str)]
        if strangers:
            raise BlendError(f"a prompt is of type {strangers[0]}, expected text. Give the prompt as text.")
        if self.card.reads_prompt and not all(prompt.strip() for prompt in prompts):
            raise BlendError(
                f"{name} compares images with their prompt, and a prompt is empty. Give the text the images were made "
                "from, or choose a reward that reads no prompt, such as aesthetic."
            )
        return prompts


Network = TypeVar("Network", bound=nn.Module)


def frozen(module: Network) -> Network:
    """`module` in eval mode, its weights without gradients."""
    return module.eval().requires_grad_(False)


def check_images(images: Tensor) -> None:
    """Raise BlendError unless `images` is (batch, 3, height, width) within [0, 1], give or take rounding."""
    if not isinstance(images, Tensor) or images.dim() != 4:
        came = f"the shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"the type {type(images).__name__}"
        raise BlendError(f"images have {came}, expected a tensor (batch, 3, height, width).")
    if 0 in images.shape:
        raise BlendError(f"images have the shape {tuple(images.shape)}: there is no image. Give at least one.")
    _check_channels(images)
    if not images.is_floating_point():
        raise BlendError(f"images are {images.dtype}, expected float values from 0 to 1. Divide by 255.")
    height, width = images.shape[-2:]
    if height * width > MOST_PIXELS:
        raise BlendError(
            f"images of {width} x {height} pixels are above the limit of {MOST_PIXELS / 1e6:.0f} megapixels. Scale "
            "them down first: learned rewards look at 224 to 384 pixels."
        )
    _check_values(images)


_OTHER_CHANNELS = {
    1: "They are grey: repeat the channel three times.",
    4: "They have an alpha channel: drop it (in ComfyUI, Split Image with Alpha), or put them on a background first.",
}


def _check_channels(images: Tensor) -> None:
    channels, last = images.shape[1], images.shape[-1]
    if channels == 3:
        return
    if last in (1, 3, 4) and channels > 4:
        hint = "The channels seem to be last: move them to the second place."
    else:
        hint = _OTHER_CHANNELS.get(channels, "Give RGB images.")
    raise BlendError(f"images have the shape {tuple(images.shape)}, expected (batch, 3, height, width). {hint}")


def _check_values(images: Tensor) -> None:
    low, high = images.detach().flatten(1).aminmax(dim=1)
    bad = (~torch.isfinite(low + high)).nonzero().flatten().tolist()
    if bad:
        raise BlendError(
            f"image {bad[0] + 1} of {len(images)} has values that are not numbers (NaN or infinite). Such images come "
            "from a failed decode: try another VAE or precision."
        )
    low, high = low.min().item(), high.max().item()
    if low < -0.01 or high > 1.01:
        hint = "They look like [-1, 1]: map them by x / 2 + 0.5." if low < -0.01 and high <= 1.01 else "Divide by 255."
        raise BlendError(f"image values run from {low:g} to {high:g}, expected 0 to 1. {hint}")
