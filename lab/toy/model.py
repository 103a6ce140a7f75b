"""The parts of the toy model: ordinary diffusers and transformers classes, small."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from . import STUDIO
from .autoencoder import PatchAutoencoder
from .data import WORDS

TEXT_LENGTH = 16  # tokens; the longest caption has 10
TEXT_WIDTH = 96
LATENT_CHANNELS = 16
LATENT_SIZE = 8


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the captions."""
    special = ["<pad>", "<start>", "<end>", "<unknown>"]
    words = ["a", "an", "on", "background", *(word for group in WORDS.values() for word in group)]
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_LENGTH,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """Two layers of width 96."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """2.8 M parameters on 16x8x8 latents."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; its last step keeps sigma > 0, so every step has a likelihood."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def fit_autoencoder(images: Tensor, generator: torch.Generator, steps: int = 400) -> PatchAutoencoder:
    """A latent code of `images` (count, 3, 32, 32) in [-1, 1]: components by PCA, then the decoder's refinement."""
    autoencoder = PatchAutoencoder(latent_channels=LATENT_CHANNELS)
    patches = F.pixel_unshuffle(images, autoencoder.config.patch).permute(0, 2, 3, 1).flatten(0, 2)
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    deviations = variances[-LATENT_CHANNELS:].flip(0).sqrt()
    components = vectors[:, -LATENT_CHANNELS:].flip(1)
    weights = deviations**0.75  # between PCA and whitening: details stay a little quieter than outlines
    weights = weights * (deviations / weights).square().mean().sqrt()
    autoencoder.mean.copy_(mean)
    autoencoder.to_latent.copy_((components / weights).T)
    autoencoder.to_patch.copy_(components * weights)
    _fit_refinement(autoencoder, images, generator, steps)
    return autoencoder.eval().requires_grad_(False)


def _fit_refinement(autoencoder: PatchAutoencoder, images: Tensor, generator: torch.Generator, steps: int) -> None:
    optimiser = torch.optim.Adam(autoencoder.refine.parameters(), 2e-3)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,), generator=generator)]
        latents = autoencoder.encode(batch).latent_dist.mean
        latents = latents + 0.03 * torch.randn(latents.shape, generator=generator)  # what a sampler leaves behind
        loss = F.mse_loss(autoencoder.decode(latents).sample, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def save_base(unet, text_encoder, tokenizer, autoencoder, folder: Path) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` loads, the network in float16.

    The small parts stay in float32: transformers would otherwise load the text encoder in float16 for a float32
    network wherever no dtype is asked for.
    """
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    unet.half()
    pipe.save_pretrained(folder)
    unet.float()
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        text = (folder / name).read_text()
        # transformers 5 writes its own name for this class; the older one is known to 4 and 5
        (folder / name).write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def load_base(folder: Path = STUDIO / "base") -> StableDiffusionPipeline:
    """The toy base model, in float32 on the CPU."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
