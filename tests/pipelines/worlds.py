"""Tiny diffusers models with random weights: a whole Stable Diffusion pipeline, and the networks of SD3 and Flux."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ..lora_files import random_lora, write_lora

WORDS = ["<pad>", "<start>", "<end>", "<unknown>", "a", "red", "blue", "circle", "square"]


def tiny_unet():
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def tiny_sd3():
    torch.manual_seed(2)
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    ).eval()


def tiny_flux():
    torch.manual_seed(3)
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def tiny_autoencoder(channels):
    torch.manual_seed(6)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.0,
    ).eval()


def unet_inputs(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(rows, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(rows, 5, 16, generator=generator),
    }


def sd3_inputs(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(rows, 5, 16, generator=generator),
        "pooled_projections": torch.randn(rows, 12, generator=generator),
        "timestep": torch.full((rows,), 500.0),
    }


def flux_inputs(rows, seed=0):
    """As many text tokens as rows, so that a host which takes token ids for rows would show."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, 9, 8, generator=generator),
        "encoder_hidden_states": torch.randn(rows, rows, 16, generator=generator),
        "pooled_projections": torch.randn(rows, 12, generator=generator),
        "timestep": torch.full((rows,), 0.5),
        "img_ids": torch.randint(0, 3, (9, 3), generator=generator).float(),
        "txt_ids": torch.zeros(rows, 3),
    }


NETWORKS = {"unet": (tiny_unet, unet_inputs), "sd3": (tiny_sd3, sd3_inputs), "flux": (tiny_flux, flux_inputs)}


def tiny_pipeline():
    """Text to 16x16 pixels in three small models; DDIM, no safety checker."""
    torch.manual_seed(4)
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    pipe = StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=_tokenizer(),
        unet=tiny_unet(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_studio(folder: Path, names: Sequence[str], size: float) -> None:
    """base/ with the tiny pipeline, and a random LoRA for it under each name. size: of its factors."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "base")
    for seed, name in enumerate(names, start=31):
        write_lora(folder / f"{name}.safetensors", random_lora(pipe.unet, seed, size=size))


def _tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=8,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )
