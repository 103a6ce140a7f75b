"""A tiny latent space for the toy studio: a fixed linear patch code with a small learned refinement after decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class _Certain:
    """A distribution of one point, so that `encode(x).latent_dist` serves pipelines as AutoencoderKL's does."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def sample(self, generator=None) -> Tensor:
        return self.mean

    def mode(self) -> Tensor:
        return self.mean


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Images (batch, 3, h, w) in [-1, 1] <-> latents (batch, latent_channels, h / patch, w / patch).

    Encoding is linear: the leading principal components of patch x patch blocks, scaled to similar variance. Decoding
    is the transpose, then a small residual convolution that repairs the seams between blocks.
    """

    @register_to_config
    def __init__(
        self,
        patch: int = 4,
        latent_channels: int = 12,
        hidden: int = 24,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1, 1, 1),  # pipelines derive the down-scaling 2 ** (len - 1) from it
        force_upcast: bool = False,
    ):
        super().__init__()
        size = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("to_latent", torch.zeros(latent_channels, size))
        self.register_buffer("to_patch", torch.zeros(size, latent_channels))
        self.refine = nn.Sequential(
            nn.Conv2d(3, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, 3, 3, padding=1),
        )

    def encode(self, images: Tensor, return_dict: bool = True):
        """The latents of `images`, as a distribution of one point."""
        patches = F.pixel_unshuffle(images, self.config.patch) - self.mean.view(1, -1, 1, 1)
        latents = _Certain(torch.einsum("cp,bphw->bchw", self.to_latent, patches))
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, latents: Tensor, return_dict: bool = True, generator=None):
        """The images of `latents`, (batch, 3, h, w), not clamped."""
        patches = torch.einsum("pc,bchw->bphw", self.to_patch, latents) + self.mean.view(1, -1, 1, 1)
        coarse = F.pixel_shuffle(patches, self.config.patch)
        images = coarse + self.refine(coarse)
        return DecoderOutput(sample=images) if return_dict else (images,)
