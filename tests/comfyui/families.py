"""Every model family that is tested: a tiny random network of ComfyUI's own class, its latents, prompts and names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from torch import nn

from . import loras, networks
from .networks import assembled

Prompt = Callable[[int], dict]
"""prompt(seed): what a family's prompt carries beside its tokens."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    load: a base model, always with the same weights.  latent: the shape of one empty latent, or of its streams (video
    and sound).  width: of a prompt's tokens.  tokens: how many.  extra: see Prompt.  renames: ComfyUI's map from
    diffusers' names, where it has one.  sequential: why its network never takes different variants in one batch; empty
    where it does.  images: how many may be made at once, where one of them changes another.  calls: of the network
    in a step, for the prompt and the negative one.  before: the parts of the network that run while the prompt is
    prepared, and not in a pass.  rounding: how much more of it than others the family has.  keeps: what the network
    keeps on itself between passes, tensors of a prompt or of a pass.  needs: a module of ComfyUI and a function in it,
    without which this ComfyUI has the family in an earlier form.
    """

    name: str
    kind: str
    load: Callable[[], comfy.model_patcher.ModelPatcher]
    latent: tuple[int, ...] | tuple[tuple[int, ...], ...]
    width: int
    tokens: int = 8
    extra: Prompt = field(default=lambda seed: {})
    renames: Callable[[dict], Mapping] | None = None
    sequential: str = ""
    images: int = 2
    calls: int = 1
    rounding: float = 1.0
    before: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    needs: tuple[str, str] | None = None

    @property
    def missing(self) -> bool:
        """Whether this ComfyUI does not know the family."""
        known = hasattr(comfy.supported_models, self.kind)
        if not known or self.needs is None:
            return not known
        module, function = self.needs
        return f"def {function}(" not in Path(importlib.import_module(module).__file__).read_text()

    def prompt(self, seed: int) -> list:
        """A random prompt."""
        return networks.conditioning(seed, self.width, self.tokens, **self.extra(seed))

    @property
    def is_unet(self) -> bool:
        """Whether its attention has processors, as diffusers had them."""
        return self.renames is comfy.utils.unet_to_diffusers

    def layers(self, model) -> list[loras.Layer]:
        """The linear and convolution weights by diffusers' names where ComfyUI knows them, else by its own."""
        names = self.renames(model.model.model_config.unet_config) if self.renames else {}
        renamed = loras.layers_of(model.model, names)
        known = {layer.module for layer in renamed}
        return [*renamed, *(layer for layer in self.own_layers(model) if layer.module not in known)]

    def own_layers(self, model) -> list[loras.Layer]:
        """The same weights, whole, by ComfyUI's names."""
        modules = model.model.diffusion_model.named_modules()
        adaptable = ((name, m) for name, m in modules if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d))
        return [loras.Layer(name, name, tuple(module.weight.shape)) for name, module in adaptable]


def detected(build: Callable[[], dict]) -> Callable[[], comfy.model_patcher.ModelPatcher]:
    """A loader of what ComfyUI detects from a state dict."""
    return lambda: networks.load(build())


def pooled(width: int) -> Prompt:
    """A pooled prompt of this width."""
    return lambda seed: {"pooled_output": networks.pooled(seed + 100, width)}


def _llama(layers: int, width: int, pooled_width: int) -> Prompt:
    """HiDream's: a pooled prompt, and the hidden states of some layers of a language model."""

    def extra(seed: int) -> dict:
        states = torch.randn(1, layers, 8, width, generator=torch.Generator().manual_seed(seed + 200))
        return {"conditioning_llama3": states, **pooled(pooled_width)(seed)}

    return extra


def unmasked(seed: int) -> dict:
    """Every token counts."""
    return {"attention_mask": torch.ones(1, 8, dtype=torch.long)}


def _mt5(tokens: int, width: int) -> Prompt:
    """Hunyuan DiT's: masks, and the tokens of a second text encoder."""

    def extra(seed: int) -> dict:
        states = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed + 200))
        masks = {"attention_mask": torch.ones(1, 8), "attention_mask_mt5xl": torch.ones(1, tokens)}
        return {"conditioning_mt5xl": states, **masks}

    return extra


FLUX_SIZES = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
LUMINA_SIZES = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,  # at least the 256 of its time embedding
    "cap_feat_dim": 64,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [300, 512, 512],
    "multiple_of": 32,
}
HUNYUAN_SIZES = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}

FAMILIES = (
    Family(
        "SD 1.5", "SD15", networks.sd15, (4, 8, 8), networks.CONTEXT,
        renames=comfy.utils.unet_to_diffusers,
    ),
    Family(
        "SDXL", "SDXL",
        partial(
            assembled, "SDXL", image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[1, 1],
            channel_mult=[1, 2], transformer_depth=[0, 2], transformer_depth_output=[0, 0, 2, 2],
            transformer_depth_middle=2, context_dim=64, adm_in_channels=2816, use_linear_in_transformer=True,
            use_spatial_transformer=True, num_classes="sequential", use_checkpoint=False, legacy=False,
        ),
        (4, 8, 8), 64, extra=pooled(1280), renames=comfy.utils.unet_to_diffusers,
    ),
    Family(
        "SD3", "SD3", detected(networks.sd3), (16, 8, 8), 4096, extra=pooled(2048),
        renames=comfy.utils.mmdit_to_diffusers,
    ),
    Family(
        "Flux", "FluxSchnell", detected(networks.flux), (16, 8, 8), 4096, extra=pooled(768),
        renames=comfy.utils.flux_to_diffusers,
    ),
    Family(
        "Flux 2", "Flux2",
        partial(
            assembled, "Flux2", image_model="flux2", **FLUX_SIZES | {
                "in_channels": 128, "out_channels": 128, "patch_size": 1, "axes_dim": [32, 32, 32, 32], "theta": 2000,
                "mlp_ratio": 3.0, "qkv_bias": False, "ops_bias": False, "global_modulation": True,
                "mlp_silu_act": True, "txt_ids_dims": [3], "guidance_embed": True,
            },
        ),
        (128, 4, 4), 64, extra=pooled(64), renames=comfy.utils.flux_to_diffusers,
    ),
    Family(
        "Chroma", "Chroma",
        partial(
            assembled, "Chroma", image_model="chroma", **FLUX_SIZES | {
                "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128, "hidden_dim": 64, "n_layers": 1,
            },
        ),
        (16, 8, 8), 64, extra=pooled(64), renames=comfy.utils.flux_to_diffusers,
    ),
    Family(
        "Qwen-Image", "QwenImage",
        partial(
            assembled, "QwenImage", image_model="qwen_image", in_channels=64, num_layers=1, num_attention_heads=1,
            joint_attention_dim=64,
        ),
        (16, 1, 8, 8), 64,
    ),
    Family(
        "Lumina 2", "Lumina2", partial(assembled, "Lumina2", **LUMINA_SIZES, n_kv_heads=1), (16, 8, 8), 64,
        extra=unmasked,
    ),
    Family(
        "Z-Image", "ZImage",
        partial(
            assembled, "ZImage", **LUMINA_SIZES, n_kv_heads=2, z_image_modulation=True, time_scale=1000.0,
            pad_tokens_multiple=32,
        ),
        (16, 8, 8), 64, renames=comfy.utils.z_image_to_diffusers,
    ),
    Family(
        "HiDream", "HiDream",
        partial(
            assembled, "HiDream", image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=1,
            num_single_layers=1, attention_head_dim=128, num_attention_heads=1, caption_channels=[64, 64],
            text_emb_dim=64, num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(64, 32, 32),
            llama_layers=[0, 1],
        ),
        (16, 8, 8), 64, extra=_llama(2, 64, 64),
        sequential="its experts get the tokens of all images in one list",
    ),
    Family("Wan 2.1", "WAN21_T2V", detected(networks.wan), (16, 3, 8, 8), 4096),
    Family("Hunyuan Video", "HunyuanVideo", partial(assembled, "HunyuanVideo", **HUNYUAN_SIZES), (16, 2, 8, 8), 64,
           extra=pooled(64), renames=comfy.utils.flux_to_diffusers),
    Family(
        "LTX-Video", "LTXV",
        partial(
            assembled, "LTXV", image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32,
            num_attention_heads=2, caption_channels=64, num_layers=1,
        ),
        (128, 2, 4, 4), 64, extra=unmasked,
    ),
    Family(
        # 12 frames, because its layers get frames first: as many as the rows that three variants of a pair make.
        "Cosmos 1", "CosmosT2V",
        partial(
            assembled, "CosmosT2V", image_model="cosmos", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16,
            out_channels=16, patch_spatial=2, patch_temporal=1, block_config="FA-CA-MLP", model_channels=64,
            num_blocks=1, num_heads=1, block_x_format="THWBD", crossattn_emb_channels=64, pos_emb_cls="rope3d",
            pos_emb_learnable=False, affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16,
            extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
        ),
        (16, 12, 8, 8), 64, sequential="its layers get the frames first and the images fourth",
    ),
    Family(
        "Cosmos Predict 2", "CosmosT2IPredict2",
        partial(
            assembled, "CosmosT2IPredict2", image_model="cosmos_predict2", max_img_h=240, max_img_w=240,
            max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
            concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=1, crossattn_emb_channels=64,
            pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=16,
        ),
        (16, 1, 8, 8), 64, keeps=("affline_emb", "affline_scale_log_info", "crossattn_emb"),
    ),
    Family(
        "Kandinsky 5", "Kandinsky5",
        partial(
            assembled, "Kandinsky5", image_model="kandinsky5", model_dim=64, time_dim=32, ff_dim=64, in_text_dim=64,
            in_text_dim2=64, visual_embed_dim=132, num_text_blocks=1, num_visual_blocks=1,
        ),
        (16, 2, 8, 8), 64, extra=pooled(64),
    ),
    Family(
        "AuraFlow", "AuraFlow",
        partial(
            assembled, "AuraFlow", in_channels=4, out_channels=4, dim=64, n_layers=2, n_double_layers=1, n_heads=2,
            global_conddim=64, cond_seq_dim=64, max_seq=64,
        ),
        (4, 8, 8), 64, renames=comfy.utils.auraflow_to_diffusers,
    ),
    Family(
        "PixArt Sigma", "PixArtSigma",
        partial(
            assembled, "PixArtSigma", image_model="pixart_sigma", input_size=64, hidden_size=64, depth=1, num_heads=2,
            caption_channels=64, micro_condition=False, pe_interpolation=1, model_max_length=8,
        ),
        (4, 40, 40), 64, renames=comfy.utils.pixart_to_diffusers,
    ),
    Family(
        # 11 tokens and their mean make 12, see Cosmos 1.
        "Hunyuan DiT", "HunyuanDiT",
        partial(
            assembled, "HunyuanDiT", image_model="hydit", hidden_size=64, depth=2, num_heads=2, text_states_dim=64,
            text_states_dim_t5=64, text_len=8, text_len_t5=11,
        ),
        (4, 8, 8), 64, extra=_mt5(11, 64), sequential="its pooler gets the tokens first and the images second",
    ),
    Family(
        "CogVideoX", "CogVideoX_T2V",
        partial(
            assembled, "CogVideoX_T2V", image_model="cogvideox", num_attention_heads=1, time_embed_dim=32,
            text_embed_dim=64, num_layers=1, use_rotary_positional_embeddings=True,
        ),
        (16, 2, 8, 8), 64, rounding=3,  # from noise of 4518, in which float32 keeps three digits less of the image
    ),
    Family(
        "Krea 2", "Krea2",
        partial(
            assembled, "Krea2", image_model="krea2", features=128, tdim=32, txtdim=32, heads=2, kvheads=1, layers=1,
            txtlayers=2, txtheads=2, txtkvheads=2,
        ),
        (16, 1, 8, 8), 64, renames=getattr(comfy.utils, "krea2_to_diffusers", None),
    ),
)  # fmt: skip


def named(name: str) -> Family:
    """The family of this name."""
    return next(family for family in FAMILIES if family.name == name)
