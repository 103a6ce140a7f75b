"""Reward models under ComfyUI's model management.

Their weights are loaded when they score, counted among the loaded models, and moved off the card when something else
needs the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy
import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import Tensor

from ...blend_core import BlendError
from ...blend_core.rewards import DTYPES, IMAGES_PER_PASS, Library, Reward, load_reward

FOLDER = "reward_models"
DEVICES = ("default", "cpu")
PRECISIONS = ("auto", *DTYPES)

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def decoded(vae, latents: Tensor) -> Tensor:
    """Pixels (batch, 3, height, width) in [0, 1] of latents, as rewards take them. Raises BlendError for videos."""
    images = vae.decode(latents)
    if images.dim() != 4 or len(images) != len(latents):
        raise BlendError(
            f"{len(latents)} latents were decoded to the shape {tuple(images.shape)}, expected one image each: reward "
            "models score images. Use the VAE of an image model, or leave the reward models out."
        )
    return images[..., :3].movedim(-1, 1).float().clamp(0, 1)


@dataclass(frozen=True)
class RewardModel:
    """A reward, and the patcher that ComfyUI manages its weights by; None for rewards without weights."""

    reward: Reward
    patcher: comfy.model_patcher.ModelPatcher | None = None

    @property
    def name(self) -> str:
        """The reward's name."""
        return self.reward.card.name

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Iterator[Tensor]:
        """Scores of images (batch, 3, height, width) on the CPU, pass by pass. prompts: one, or one per image."""
        prompts = self.reward.one_per_image(prompts, len(images))
        size = self._ready(len(images))
        for start in range(0, len(images), size):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = slice(start, start + size)
            yield self.reward(images[part], prompts[part], images_per_pass=size).float().cpu()

    def _ready(self, count: int) -> int:
        """Load the weights; returns how many images fit one pass."""
        most = min(count, IMAGES_PER_PASS)
        if self.patcher is None:
            return most
        need = self.reward.activation_bytes
        # The weights cannot be split between card and memory: these are not ComfyUI's own layers.
        comfy.model_management.load_models_gpu([self.patcher], memory_required=need * most, force_full_load=True)
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        return int(max(1, min(most, free // max(1, need))))


def load_reward_model(name: str, device: str, precision: str, scale: str, download: bool) -> RewardModel:
    """The reward as a managed model. Raises BlendError where load_reward does."""
    on_card = device == "default"
    load_device = comfy.model_management.text_encoder_device() if on_card else torch.device("cpu")
    offload_device = comfy.model_management.text_encoder_offload_device() if on_card else torch.device("cpu")
    with torch.inference_mode(False):  # weights made under inference mode could never pass a gradient on to pixels
        reward = load_reward(name, library(download), "cpu", _dtype(precision, load_device), scale)
    if reward.place() is None:
        return RewardModel(reward)
    reward.to(offload_device)
    return RewardModel(reward, comfy.model_patcher.ModelPatcher(reward, load_device, offload_device))


def library(download: bool) -> Library:
    """ComfyUI's folders for reward models; its own package is one too, for CLIP's vocabulary."""
    return Library((*_folders(), Path(comfy.model_management.__file__).parent), download, "allow_download on this node")


def own_rewards() -> dict[str, Path]:
    """Python files that the user has put into models/reward_models, by name."""
    return Library(_folders()).own_rewards()


def _folders() -> tuple[Path, ...]:
    return tuple(map(Path, folder_paths.get_folder_paths(FOLDER)))


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return DTYPES[precision]
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
