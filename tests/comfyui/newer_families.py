"""The families that came after those of families.py: tiny random networks of the other classes of ComfyUI 0.33.

FURTHER are families like those of families.py. Every other class of comfy.supported_models stands in VARIANTS, with the
family whose network it shares, or in REFUSED, with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import comfy.ops
import comfy.utils
import torch

from . import networks
from .families import FLUX_SIZES, HUNYUAN_SIZES, LUMINA_SIZES, Family, pooled, unmasked
from .networks import assembled

_WAN_SIZES = {
    "image_model": "wan2.1", "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 1, "text_dim": 64,
}  # fmt: skip
_COSMOS_SIZES = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "concat_padding_mask": True, "model_channels": 64, "num_blocks": 1, "num_heads": 1,
    "crossattn_emb_channels": 64, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16,
}  # fmt: skip
_LAYERS = {"device": torch.device("cpu"), "dtype": networks.DTYPE, "operations": comfy.ops.disable_weight_init}


def drawn(*shape: int, seed: int = 0):
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 300))


def _small_adapter(base_model) -> None:
    """Anima's adapter of the prompt, which has no sizes to be set from outside."""
    sizes = {"source_dim": 64, "target_dim": 64, "model_dim": 64, "num_layers": 1, "num_heads": 2}
    network = base_model.diffusion_model
    network.llm_adapter = type(network.llm_adapter)(**sizes, **_LAYERS)


def _short_lyrics(base_model) -> None:
    """One layer of the encoder of lyrics, whose width is fixed."""
    encoder = base_model.diffusion_model.lyric_encoder
    encoder.encoders = encoder.encoders[:1]


def _small_audio(base_model) -> None:
    """HuMo's projection of sound."""
    sizes = {"seq_len": 2, "blocks": 2, "channels": 16, "intermediate_dim": 32, "context_tokens": 2}
    network = base_model.diffusion_model
    network.audio_proj = type(network.audio_proj)(**sizes, **_LAYERS)


def _no_faces(base_model) -> None:
    """Animate's encoder of faces without its wide layers: no prompt here has a face."""
    encoder = base_model.diffusion_model.motion_encoder.enc.net_app
    encoder.convs = encoder.convs[:2]


def _one_block(base_model) -> None:
    """One block of MiniMax Music, whose sizes are fixed, out of the memory of none."""
    transformer = base_model.diffusion_model.diffusion_transformer.transformer
    transformer.layers = transformer.layers[:1]
    base_model.diffusion_model.to_empty(device="cpu")


def _t5_tokens(seed: int) -> dict:
    """The prompt once more, in T5's tokens."""
    ids = torch.randint(0, 32128, (6,), generator=torch.Generator().manual_seed(seed))
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(6)}


def _o1_tokens(seed: int) -> dict:
    """HiDream O1 reads the tokens themselves; the last but one is that of the image, the last that of the time."""
    ids = torch.randint(0, 151000, (1, 8), generator=torch.Generator().manual_seed(seed))
    ids[:, -2:] = torch.tensor([151669, 151673])
    return {"text_input_ids": ids}


def _picture(seed: int) -> dict:
    """What CLIP's vision model says of a picture to begin with."""
    return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=drawn(1, 257, 1280, seed=seed))}


def _hunyuan15(seed: int) -> dict:
    """A pooled prompt, the text to be written in the picture, and what SigLIP says of a picture to begin with."""
    picture = SimpleNamespace(last_hidden_state=drawn(1, 4, 64, seed=seed))
    text = {"conditioning_byt5small": drawn(1, 6, 1472, seed=seed)}
    return {**pooled(64)(seed), **text, "clip_vision_output": picture}


def _known(function: Callable, **settings) -> dict:
    """Those of the settings that this ComfyUI's function has."""
    return {name: value for name, value in settings.items() if name in inspect.signature(function).parameters}


def _ace_step_15():
    """ACE-Step 1.5, whose encoder had the sizes of its decoder at first."""
    from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel as Network

    return assembled(
        "ACEStep15", audio_model="ace1.5", hidden_size=64, text_hidden_dim=64, num_dit_layers=2, num_lyric_layers=1,
        num_timbre_layers=1, num_tokenizer_layers=1, num_heads=2, num_kv_heads=1, head_dim=32, intermediate_size=64,
        fsq_dim=64,
        **_known(Network, encoder_hidden_size=64, encoder_intermediate_size=64, encoder_num_heads=2),
    )  # fmt: skip


def _chroma_radiance():
    """Chroma Radiance, which was given a further switch."""
    from comfy.ldm.chroma_radiance.model import ChromaRadianceParams as Settings

    sizes = FLUX_SIZES | {
        "in_channels": 3, "out_channels": 64, "in_dim": 64, "out_dim": 128, "hidden_dim": 64, "n_layers": 1,
        "patch_size": 16, "nerf_hidden_size": 32, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4,
        "nerf_tile_size": 32, "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False,
    }  # fmt: skip
    further = _known(Settings, use_sequential_txt_ids=False)
    return assembled("ChromaRadiance", image_model="chroma_radiance", **sizes, **further)


def _seconds(*names: str, **options) -> dict:
    """The weights of Stable Audio's embedders of numbers, which lie beside the network."""
    import comfy.ldm.audio.embedders

    embedder = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512, **options)
    state = networks.filled(embedder)
    return {f"conditioner.conditioners.{name}.{key}": value for name in names for key, value in state.items()}


FURTHER = (
    Family(
        "SD 2", "SD20",
        partial(
            assembled, "SD20", image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[1, 1],
            channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
            transformer_depth_middle=1, context_dim=64, use_linear_in_transformer=True, use_spatial_transformer=True,
            use_checkpoint=False, legacy=False, adm_in_channels=None, num_head_channels=32, num_heads=-1,
        ),
        (4, 8, 8), 64, renames=comfy.utils.unet_to_diffusers,
    ),
    Family(
        "SDXL refiner", "SDXLRefiner",
        partial(
            assembled, "SDXLRefiner", image_size=32, in_channels=4, out_channels=4, model_channels=64,
            num_res_blocks=[1, 1], channel_mult=[1, 2], transformer_depth=[0, 2],
            transformer_depth_output=[0, 0, 2, 2], transformer_depth_middle=2, context_dim=64, adm_in_channels=2560,
            use_linear_in_transformer=True, use_spatial_transformer=True, num_classes="sequential",
            use_checkpoint=False, legacy=False,
        ),
        (4, 8, 8), 64, extra=pooled(1280), renames=comfy.utils.unet_to_diffusers,
    ),
    Family(
        "SVD", "SVD_img2vid",
        partial(
            assembled, "SVD_img2vid", image_size=32, in_channels=8, out_channels=4, model_channels=64,
            num_res_blocks=[1, 1], channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
            transformer_depth_middle=1, context_dim=64, adm_in_channels=768, use_linear_in_transformer=True,
            use_spatial_transformer=True, num_classes="sequential", use_temporal_attention=True,
            use_temporal_resblock=True, use_checkpoint=False, legacy=False, num_head_channels=32, num_heads=-1,
            extra_ff_mix_layer=True, merge_strategy="learned_with_images", merge_factor=0.5, use_spatial_context=True,
            video_kernel_size=[3, 1, 1], disable_temporal_crossattention=False,
        ),
        (4, 8, 8), 64, sequential="the images of a batch are the frames of one video", images=1,
    ),
    Family(
        "Stable Cascade C", "Stable_Cascade_C",
        partial(
            assembled, "Stable_Cascade_C", stable_cascade_stage="c", c_cond=64, c_hidden=[64, 64], nhead=[2, 2],
            blocks=[[1, 1], [1, 1]], c_clip_text=64, c_clip_text_pooled=64, c_clip_img=768,
        ),
        (16, 8, 8), 64, extra=pooled(64),
    ),
    Family(
        "Stable Cascade B", "Stable_Cascade_B",
        partial(
            assembled, "Stable_Cascade_B", stable_cascade_stage="b", c_cond=64, c_hidden=[32, 32, 64, 64],
            nhead=[-1, -1, 2, 2], blocks=[[1, 1, 1, 1], [1, 1, 1, 1]], block_repeat=[[1, 1, 1, 1], [2, 2, 2, 2]],
            c_clip=64,
        ),
        (4, 32, 32), 64, extra=pooled(64),
    ),
    Family(
        "Mochi", "GenmoMochi",
        partial(
            assembled, "GenmoMochi", image_model="mochi_preview", depth=2, patch_size=2, num_heads=2, hidden_size_x=64,
            hidden_size_y=32, mlp_ratio_x=192.0, mlp_ratio_y=4.0, learn_sigma=False, in_channels=12, qk_norm=True,
            qkv_bias=False, out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True,
            timestep_mlp_bias=True, attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=64,
            t5_token_length=8, rope_theta=10000.0,
        ),
        (12, 2, 8, 8), 64, extra=unmasked,
    ),
    Family(
        "Ernie", "ErnieImage",
        partial(
            assembled, "ErnieImage", image_model="ernie", hidden_size=128, num_attention_heads=1, num_layers=1,
            ffn_hidden_size=128, text_in_dim=64,
        ),
        (128, 4, 4), 64,
    ),
    Family(
        "Ideogram 4", "Ideogram4",
        partial(
            assembled, "Ideogram4", image_model="ideogram4", in_channels=128, num_layers=1,
            fixed={
                "num_attention_heads": 1, "attention_head_dim": 128, "intermediate_size": 128, "adaln_dim": 32,
                "llm_features_dim": 64,
            },
        ),
        (128, 4, 4), 64,
    ),
    Family(
        "JoyImage", "JoyImage",
        partial(
            assembled, "JoyImage", image_model="joyimage", in_channels=16, hidden_size=128, num_attention_heads=1,
            text_dim=64, num_layers=1, patch_size=[1, 2, 2],
        ),
        (16, 1, 8, 8), 64,
    ),
    Family(
        "Omnigen 2", "Omnigen2",
        partial(
            assembled, "Omnigen2", image_model="omnigen2", axes_dim_rope=[32, 16, 16], axes_lens=[300, 64, 64],
            hidden_size=128, multiple_of=32, num_attention_heads=2, num_kv_heads=1, num_layers=1, num_refiner_layers=1,
            text_feat_dim=64, timestep_scale=1000.0,
        ),
        (16, 8, 8), 64, extra=unmasked,
    ),
    Family(
        "Boogu", "Boogu",
        partial(
            assembled, "Boogu", image_model="boogu", hidden_size=128, num_layers=1, num_double_stream_layers=1,
            num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=32, axes_dim_rope=(32, 16, 16),
            axes_lens=(300, 64, 64), instruction_feat_dim=64,
        ),
        (16, 8, 8), 64, extra=unmasked,
    ),
    Family(
        "Lens", "Lens",
        partial(
            assembled, "Lens", image_model="lens", in_channels=128, out_channels=32, num_layers=1,
            attention_head_dim=64, num_attention_heads=1, enc_hidden_dim=32, selected_layer_index=(0, 1),
        ),
        (128, 4, 4), 64,
    ),
    Family(
        "Mage-Flow", "MageFlow",
        partial(
            assembled, "MageFlow", image_model="mage_flow", in_channels=128, num_layers=1, num_attention_heads=1,
            joint_attention_dim=64,
        ),
        (128, 4, 4), 64,
    ),
    Family(
        "LongCat", "LongCatImage",
        partial(
            assembled, "LongCatImage", image_model="flux",
            **FLUX_SIZES | {"in_channels": 16, "guidance_embed": False, "txt_ids_dims": [1, 2]},
        ),
        (16, 8, 8), 64, renames=comfy.utils.flux_to_diffusers,
    ),
    Family(
        "Chroma Radiance", "ChromaRadiance", _chroma_radiance,
        (3, 32, 32), 64, extra=pooled(64), renames=comfy.utils.flux_to_diffusers,
    ),
    Family(
        "Hunyuan Image 2.1", "HunyuanImage21",
        partial(
            assembled, "HunyuanImage21", **HUNYUAN_SIZES | {
                "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None, "axes_dim": [64, 64],
                "byt5": True, "guidance_embed": False,
            },
        ),
        (64, 4, 4), 64, extra=lambda seed: {"conditioning_byt5small": drawn(1, 6, 1472, seed=seed)},
    ),
    Family(
        "Hunyuan Video 1.5", "HunyuanVideo15",
        partial(
            assembled, "HunyuanVideo15", **HUNYUAN_SIZES | {
                "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None, "byt5": True,
                "guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 64, "meanflow_sum": True,
            },
        ),
        (32, 2, 4, 4), 64, extra=_hunyuan15,
    ),
    Family(
        "Kandinsky 5 image", "Kandinsky5Image",
        partial(
            assembled, "Kandinsky5Image", image_model="kandinsky5", model_dim=64, time_dim=32, ff_dim=64,
            in_text_dim=64, in_text_dim2=64, visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=1,
        ),
        (16, 1, 8, 8), 64, extra=pooled(64),
    ),
    Family(
        "Anima", "Anima",
        partial(assembled, "Anima", image_model="anima", adapt=_small_adapter, **_COSMOS_SIZES),
        (16, 1, 8, 8), 64, extra=_t5_tokens, before=("llm_adapter",),
        keeps=("affline_emb", "affline_scale_log_info", "crossattn_emb"),
    ),
    Family(
        "LTX-2", "LTXAV",
        partial(
            assembled, "LTXAV", image_model="ltxav", in_channels=128, audio_in_channels=128, cross_attention_dim=64,
            audio_cross_attention_dim=64, attention_head_dim=32, audio_attention_head_dim=32, num_attention_heads=2,
            audio_num_attention_heads=2, caption_channels=64, num_layers=1, connector_attention_head_dim=32,
            connector_num_attention_heads=2, connector_num_layers=1,
        ),
        ((128, 2, 4, 4), (8, 4, 16)), 64, extra=lambda seed: {"unprocessed_ltxav_embeds": True},
        before=("video_embeddings_connector", "audio_embeddings_connector"),
        needs=("comfy.ldm.lightricks.av_model", "preprocess_text_embeds"),
    ),
    Family(
        "MiniMax H3", "MiniMaxH3",
        partial(
            assembled, "MiniMaxH3", image_model="minimax_h3", hidden_size=128, num_layers=1, token_refiner_num_layers=1,
            num_attention_heads=1, attention_head_dim=128, ffn_hidden_size=128, text_dim=64, timestep_input_dim=32,
            time_embed_hidden_size=64, time_embed_dim=64,
        ),
        ((24, 2, 4, 4), (32, 2, 5)), 64, sequential="it takes one image a pass", images=1, calls=2,
        before=("condition_proj", "token_refiner"),
    ),
    Family(
        "Wan 2.2 5B", "WAN22_T2V",
        partial(assembled, "WAN22_T2V", model_type="t2v", in_dim=48, out_dim=48, **_WAN_SIZES), (48, 2, 4, 4), 64,
    ),
    Family(
        "Wan 2.1 image to video", "WAN21_I2V",
        partial(assembled, "WAN21_I2V", model_type="i2v", in_dim=36, **_WAN_SIZES), (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "Wan VACE", "WAN21_Vace",
        partial(assembled, "WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96, **_WAN_SIZES),
        (16, 3, 8, 8), 64,
    ),
    Family(
        "Wan Fun camera", "WAN21_Camera",
        partial(assembled, "WAN21_Camera", model_type="camera", in_dim=32, **_WAN_SIZES),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "Wan S2V", "WAN22_S2V",
        partial(
            assembled, "WAN22_S2V", model_type="s2v", audio_dim=64, num_audio_token=2, audio_inject_layers=[0],
            **_WAN_SIZES,
        ),
        (16, 3, 8, 8), 64,
    ),
    Family(
        "Wan HuMo", "WAN21_HuMo",
        partial(assembled, "WAN21_HuMo", model_type="humo", in_dim=36, adapt=_small_audio, **_WAN_SIZES),
        (16, 3, 8, 8), 64,
    ),
    Family(
        "Wan Animate", "WAN22_Animate",
        partial(assembled, "WAN22_Animate", model_type="animate", in_dim=36, adapt=_no_faces, **_WAN_SIZES),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "Wan Animate 2", "WAN_Animate2",
        partial(assembled, "WAN_Animate2", model_type="animate2", in_dim=36, **_WAN_SIZES),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "SCAIL", "WAN21_SCAIL", partial(assembled, "WAN21_SCAIL", model_type="scail", in_dim=20, **_WAN_SIZES),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "SCAIL 2", "WAN21_SCAIL2", partial(assembled, "WAN21_SCAIL2", model_type="scail2", in_dim=20, **_WAN_SIZES),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "WanDancer", "WAN22_WanDancer",
        partial(
            assembled, "WAN22_WanDancer", model_type="wandancer", in_dim=36, audio_inject_layers=[0], music_dim=64,
            music_latent_dim=64, **_WAN_SIZES,
        ),
        (16, 3, 8, 8), 64, extra=_picture,
    ),
    Family(
        "Wan causal", "WAN21_CausalAR_T2V",
        partial(assembled, "WAN21_CausalAR_T2V", model_type="t2v", **_WAN_SIZES), (16, 3, 8, 8), 64,
    ),
    Family(
        "Z-Image pixel", "ZImagePixelSpace",
        partial(
            assembled, "ZImagePixelSpace", **LUMINA_SIZES | {
                "image_model": "zimage_pixel", "patch_size": 8, "in_channels": 3, "n_kv_heads": 2,
                "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "decoder_in_channels": 192,
                "decoder_hidden_size": 64, "decoder_num_res_blocks": 1, "decoder_max_freqs": 4,
            },
        ),
        (3, 32, 32), 64, renames=comfy.utils.z_image_to_diffusers,
    ),
    Family(
        "PixelDiT", "PixelDiTT2I",
        partial(
            assembled, "PixelDiTT2I", image_model="pixeldit_t2i", num_groups=2, hidden_size=64, pixel_hidden_size=8,
            pixel_attn_hidden_size=64, pixel_num_groups=2, patch_depth=1, pixel_depth=1, txt_embed_dim=64,
            txt_max_length=8,
        ),
        (3, 32, 32), 64,
    ),
    Family(
        "HiDream O1", "HiDreamO1",
        partial(
            assembled, "HiDreamO1", image_model="hidream_o1",
            text_config_overrides={
                "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1,
            },
            vision_config_overrides={
                "hidden_size": 64, "intermediate_size": 64, "depth": 1, "num_heads": 2, "num_position_embeddings": 16,
                "deepstack_visual_indexes": (),
            },
        ),
        (3, 64, 64), 64, extra=_o1_tokens, keeps=("_kv_cache_entries",),
    ),
    Family(
        "SeedVR2", "SeedVR2",
        partial(
            assembled, "SeedVR2", image_model="seedvr2", num_layers=2, mlp_type="swiglu", vid_dim=64, txt_in_dim=64,
            heads=2, head_dim=32, mm_layers=1, rope_dim=32, vid_out_norm=True, norm_eps=1e-5,
        ),
        (16, 1, 8, 8), 64, tokens=58, extra=lambda seed: {"condition": drawn(1, 17, 1, 8, 8)},
        sequential="it tells the prompt from the negative one by the halves of a batch",
    ),
    Family(
        "ACE-Step", "ACEStep",
        partial(
            assembled, "ACEStep", audio_model="ace", attention_head_dim=32, in_channels=8, inner_dim=64, max_height=16,
            max_position=64, max_width=64, mlp_ratio=2.5, num_attention_heads=2, num_layers=1, out_channels=8,
            patch_size=[16, 1], rope_theta=1000000.0, speaker_embedding_dim=512, text_embedding_dim=64,
            ssl_encoder_depths=[8, 8], ssl_latent_dims=[64, 32], ssl_names=["mert", "m-hubert"],
            lyric_encoder_vocab_size=16, lyric_hidden_size=1024, adapt=_short_lyrics,
        ),
        (8, 16, 12), 64, extra=lambda seed: {"conditioning_lyrics": torch.tensor([[1, 2, 3, 4]])},
    ),
    Family(
        "ACE-Step 1.5", "ACEStep15", _ace_step_15,
        (64, 20), 64, extra=lambda seed: {"conditioning_lyrics": drawn(1, 5, 64, seed=seed)},
        sequential="the timbres of all images of a batch go to its first", images=1,
    ),
    Family(
        "Stable Audio", "StableAudio",
        partial(
            assembled, "StableAudio", audio_model="dit1.0", state=partial(_seconds, "seconds_start", "seconds_total"),
            embed_dim=64, depth=1, num_heads=2, global_cond_dim=1536, project_cond_tokens=True, cond_token_dim=768,
        ),
        (64, 16), 768,
    ),
    Family(
        "Stable Audio 3", "StableAudio3",
        partial(
            assembled, "StableAudio3", audio_model="dit1.0",
            state=partial(_seconds, "seconds_total", fourier_features_type="expo"), embed_dim=64, depth=1, num_heads=2,
            global_cond_dim=768, project_cond_tokens=True, cond_token_dim=768, io_channels=256,
            global_cond_type="adaLN", global_cond_shared_embed=True, timestep_features_type="expo",
            attn_kwargs={"qk_norm": "rms", "differential": False}, norm_type="rms_norm", num_memory_tokens=4,
            local_add_cond_dim=257,
        ),
        (256, 16), 768,
    ),
    Family(
        "Cosmos Predict 2 video", "CosmosI2VPredict2",
        partial(assembled, "CosmosI2VPredict2", image_model="cosmos_predict2", **_COSMOS_SIZES | {"in_channels": 17}),
        (16, 3, 8, 8), 64, keeps=("affline_emb", "affline_scale_log_info", "crossattn_emb"),
    ),
    Family(
        "CogVideoX image to video", "CogVideoX_I2V",
        partial(
            assembled, "CogVideoX_I2V", image_model="cogvideox", num_attention_heads=1, time_embed_dim=32,
            text_embed_dim=64, num_layers=1, use_rotary_positional_embeddings=True, in_channels=32, ofs_embed_dim=32,
        ),
        (16, 2, 8, 8), 64, rounding=3,
    ),
    Family(
        "MiniMax Music 3", "MiniMaxMusic3",
        partial(assembled, "MiniMaxMusic3", audio_model="minimax_music3", device="meta", adapt=_one_block),
        (128, 12), 8 * 4096, extra=lambda seed: {"conditioning_scale": torch.ones(1, 1, 1)},
    ),
    Family(
        "PiD", "PiD",
        partial(
            assembled, "PiD", image_model="pid", num_groups=2, hidden_size=64, pixel_hidden_size=8,
            pixel_attn_hidden_size=64, pixel_num_groups=2, patch_depth=2, pixel_depth=1, txt_embed_dim=64,
            txt_max_length=8, lq_hidden_dim=32, lq_num_res_blocks=1,
        ),
        (3, 64, 64), 64, extra=lambda seed: {"lq_latent": drawn(1, 16, 2, 2), "degrade_sigma": torch.zeros(1)},
    ),
)  # fmt: skip

VARIANTS = {
    "LotusD": "SD 2", "Stable_Zero123": "SD 1.5", "SD15_instructpix2pix": "SD 1.5", "SD21UnclipL": "SD 2",
    "SD21UnclipH": "SD 2", "SDXL_instructpix2pix": "SDXL", "SSD1B": "SDXL", "KOALA_700M": "SDXL", "KOALA_1B": "SDXL",
    "Segmind_Vega": "SDXL", "SD_X4Upscaler": "SD 2", "SV3D_u": "SVD", "SV3D_p": "SVD", "PixArtAlpha": "PixArt Sigma",
    "HunyuanDiT1": "Hunyuan DiT", "FluxInpaint": "Flux", "Flux": "Flux", "HunyuanVideo15_SR_Distilled":
    "Hunyuan Video 1.5", "HunyuanImage21Refiner": "Hunyuan Image 2.1", "HunyuanVideoSkyreelsI2V": "Hunyuan Video",
    "HunyuanVideoI2V": "Hunyuan Video", "CosmosI2V": "Cosmos 1", "WAN21_FunControl2V": "Wan 2.1 image to video",
    "WAN22_Camera": "Wan Fun camera", "WAN21_FlowRVS": "Wan 2.1", "CogVideoX_Inpaint": "CogVideoX image to video",
}  # fmt: skip

_SHAPES, _READS = "it makes shapes in space, of a picture", "it reads pictures and makes none"
REFUSED = {
    "Hunyuan3Dv2mini": _SHAPES, "Hunyuan3Dv2": _SHAPES, "Hunyuan3Dv2_1": _SHAPES, "Trellis2": _SHAPES,
    "TripoSplat": _SHAPES, "RT_DETR_v4": _READS, "SAM3": _READS, "SAM31": _READS, "DepthAnything3": _READS,
}  # fmt: skip
