"""Tiny random pipelines of every family, saved as diffusers folders, and a run's settings on them."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusion_blend.trainers.settings.config import read_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ["<pad>", "<start>", "<end>", "<unknown>", "a", "red", "blue", "circle", "square"]
PROMPTS = ["a red circle", "a blue square", "a red square", "a blue circle"]


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=8,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


def text_encoder(kind=CLIPTextModel, width=16):
    return kind(
        CLIPTextConfig(
            vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, projection_dim=width,
            num_attention_heads=2, max_position_embeddings=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def autoencoder(**options):
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **options,
    ).eval()


def unet(**options):
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=options.pop("cross_attention_dim", 16),
        attention_head_dim=8,
        norm_num_groups=8,
        **options,
    ).eval()


def scheduler():
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def sd15():
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    torch.manual_seed(0)
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    network = unet(cross_attention_dim=32, projection_class_embeddings_input_dim=6 * 4 + 16, **extra)
    return StableDiffusionXLPipeline(
        vae=autoencoder(), text_encoder=text_encoder(), text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), unet=network, scheduler=scheduler(),
    )  # fmt: skip


def t5():
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    ).eval()


def sd3():
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=autoencoder(shift_factor=0.06),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        text_encoder_3=t5(), tokenizer=tokenizer(), tokenizer_2=tokenizer(), tokenizer_3=tokenizer(),
    )  # fmt: skip


def flux(distilled=True):
    """Flux dev, or with distilled off the shape of schnell: guidance is no input of the network."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4), guidance_embeds=distilled,
    ).eval()  # fmt: skip
    # so short a line of shifts, that the number of patches moves the schedule at these sizes too
    schedule = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64} if distilled else {}
    pipe = FluxPipeline(
        transformer=transformer, vae=autoencoder(scaling_factor=0.36, shift_factor=0.12), text_encoder=text_encoder(),
        tokenizer=tokenizer(), text_encoder_2=t5(), tokenizer_2=tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
    )  # fmt: skip
    pipe.default_sample_size = SIDE  # the pipeline's own is that of the real model
    return pipe


def schnell():
    return flux(distilled=False)


SIDE = 8  # latent pixels
FAMILIES = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux, "schnell": schnell}


def save(kind, folder):
    """The folder, as `from_pretrained` loads it."""
    FAMILIES[kind]().save_pretrained(folder)
    return folder


def settings(base, folder, **changes):
    """A run of seconds: two epochs of eight images in three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    defaults = {
        "algorithm": "grpo",
        "kl_weight": 0.01,
        "epochs": 2,
        "prompts_per_epoch": 2,
        "images_per_prompt": 2,
        "updates_per_epoch": 1,
        "base__path": str(base),
        "reward__name": "brightness",
        "prompts__file": str(prompts),
        "sampling__steps": 4,
        "sampling__cfg": 2.0,
        "lora__rank": 2,
        "optimisation__learning_rate": 1e-3,
        "optimisation__images_per_pass": 2,
        "output__folder": str(folder),
        "output__validate_every": 0,
        "output__checkpoint_every": 1,
        "draft__steps": 2,
    }
    return read_config(**defaults | changes)
