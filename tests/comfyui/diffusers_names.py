"""What diffusers calls the weights of small networks that ComfyUI has made: run by diffusers' Python.

    python diffusers_names.py FOLDER    reads FAMILY.safetensors, of ComfyUI, writes FAMILY/COMPONENT.safetensors

Two ways, both diffusers' own: the converter that reads the original code's checkpoints, whose values show where every
weight goes (CONVERTED); and the class of the network, of the same sizes, whose names and shapes are all there is
(BUILT). No ComfyUI here: test_key_maps.py starts this file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers.loaders import single_file_utils
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]


def _converted(name: str, before: Callable[[State], State] = dict, after: Callable[[State], State] = dict):
    """A converter of diffusers', with what it expects of names made from ComfyUI's."""

    def convert(state: State) -> State:
        return after(getattr(single_file_utils, name)(before(state), config={}))

    return convert


_LAST = 47  # of Mochi's blocks, by the converter


def _at_full_depth(state: State) -> State:
    """Mochi's first and last block as the first and last of 48."""
    deep = {k: v for k, v in state.items() if not k.startswith("blocks.")}
    for number in range(_LAST + 1):
        source = f"blocks.{int(number == _LAST)}."
        deep |= {f"blocks.{number}.{k.removeprefix(source)}": v for k, v in state.items() if k.startswith(source)}
    return deep


def _at_depth_2(state: State) -> State:
    """The first and last block of 48 as those of two."""
    shallow = {re.sub(rf"^transformer_blocks\.{_LAST}\.", "last.", k): v for k, v in state.items()}
    kept = {k: v for k, v in shallow.items() if not re.match(r"transformer_blocks\.([1-9])", k)}
    return {re.sub(r"^last\.", "transformer_blocks.1.", k): v for k, v in kept.items()}


CONVERTED = {
    "SD3": _converted("convert_sd3_transformer_checkpoint_to_diffusers"),
    "Flux 2": _converted("convert_flux2_transformer_checkpoint_to_diffusers"),
    "AuraFlow": _converted("convert_auraflow_transformer_checkpoint_to_diffusers"),
    "Wan 2.1": _converted("convert_wan_transformer_to_diffusers"),
    "Wan 2.1 image to video": _converted("convert_wan_transformer_to_diffusers"),
    "Wan VACE": _converted("convert_wan_transformer_to_diffusers"),
    "Wan Animate 2": _converted("convert_wan_animate_2_transformer_to_diffusers"),
    "LTX-Video": _converted("convert_ltx_transformer_checkpoint_to_diffusers"),
    "LTX-2": _converted("convert_ltx2_transformer_to_diffusers"),
    "Mochi": _converted("convert_mochi_transformer_checkpoint_to_diffusers", _at_full_depth, _at_depth_2),
    "Cosmos Predict 2": _converted("convert_cosmos_transformer_checkpoint_to_diffusers"),
    "Z-Image": _converted("convert_z_image_transformer_checkpoint_to_diffusers"),
    "Krea 2": _converted("convert_krea2_transformer_checkpoint_to_diffusers"),
    "Ernie": _converted("convert_ernie_image_transformer_checkpoint_to_diffusers"),
    "MiniMax H3": _converted("convert_minimax_h3_transformer_checkpoint_to_diffusers"),
    "HiDream": _converted("convert_hidream_transformer_to_diffusers"),
}
_BLOCK = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128}
_UNET = {
    "block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 64, "norm_num_groups": 32,
}  # fmt: skip
BUILT = {
    "SD 2": partial(
        diffusers.UNet2DConditionModel, **_UNET, use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "SDXL": partial(
        diffusers.UNet2DConditionModel, **_UNET, use_linear_projection=True, transformer_layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ),
    "Flux": partial(
        diffusers.FluxTransformer2DModel, **_BLOCK, num_single_layers=1, joint_attention_dim=4096,
        pooled_projection_dim=768,
    ),
    "Chroma": partial(
        diffusers.ChromaTransformer2DModel, **_BLOCK, num_single_layers=1, joint_attention_dim=64,
        approximator_hidden_dim=64, approximator_layers=1,
    ),
    "Hunyuan Video": partial(
        diffusers.HunyuanVideoTransformer3DModel, **_BLOCK, num_single_layers=1, num_refiner_layers=2,
        text_embed_dim=64, pooled_projection_dim=64,
    ),
    "Hunyuan Image 2.1": partial(
        diffusers.HunyuanImageTransformer2DModel, **_BLOCK, num_single_layers=1, text_embed_dim=64,
        text_embed_2_dim=1472,
    ),
    "Hunyuan Video 1.5": partial(
        diffusers.HunyuanVideo15Transformer3DModel, **_BLOCK, text_embed_dim=64, text_embed_2_dim=1472,
        image_embed_dim=64,
    ),
    "Hunyuan DiT": partial(
        diffusers.HunyuanDiT2DModel, num_layers=2, num_attention_heads=2, attention_head_dim=32, hidden_size=64,
        cross_attention_dim=64, cross_attention_dim_t5=64, in_channels=4, patch_size=2, text_len=8, text_len_t5=11,
        use_style_cond_and_image_meta_size=False,
    ),
    "Lumina 2": partial(
        diffusers.Lumina2Transformer2DModel, num_layers=1, num_refiner_layers=1, hidden_size=256,
        num_attention_heads=2, num_kv_heads=1, cap_feat_dim=64, axes_dim_rope=(64, 32, 32), multiple_of=32,
    ),
    "CogVideoX": partial(
        diffusers.CogVideoXTransformer3DModel, num_layers=1, num_attention_heads=1, time_embed_dim=32,
        text_embed_dim=64, use_rotary_positional_embeddings=True,
    ),
    "CogVideoX image to video": partial(
        diffusers.CogVideoXTransformer3DModel, num_layers=1, num_attention_heads=1, time_embed_dim=32,
        text_embed_dim=64, use_rotary_positional_embeddings=True, in_channels=32, ofs_embed_dim=32,
    ),
    "Kandinsky 5": partial(
        diffusers.Kandinsky5Transformer3DModel, model_dim=64, time_dim=32, ff_dim=64, in_text_dim=64, in_text_dim2=64,
        num_text_blocks=1, num_visual_blocks=1, in_visual_dim=33, out_visual_dim=16,
    ),
    "Cosmos 1": partial(
        diffusers.CosmosTransformer3DModel, num_attention_heads=1, attention_head_dim=64, num_layers=1,
        text_embed_dim=64, adaln_lora_dim=16, max_size=(128, 240, 240),
    ),
    "Anima": partial(
        diffusers.CosmosTransformer3DModel, num_attention_heads=1, attention_head_dim=64, num_layers=1,
        text_embed_dim=64, adaln_lora_dim=16, extra_pos_embed_type=None,
    ),
    "Stable Audio": partial(
        diffusers.StableAudioDiTModel, num_layers=1, attention_head_dim=32, num_attention_heads=2,
        num_key_value_attention_heads=2, cross_attention_dim=64, cross_attention_input_dim=768,
    ),
    "Qwen-Image": partial(
        diffusers.QwenImageTransformer2DModel, num_layers=1, num_attention_heads=1, joint_attention_dim=64
    ),
    "PixArt Sigma": partial(
        diffusers.PixArtTransformer2DModel, num_layers=1, num_attention_heads=2, attention_head_dim=32,
        caption_channels=64, sample_size=64, cross_attention_dim=64,
    ),
    "LongCat": partial(
        diffusers.LongCatImageTransformer2DModel, **_BLOCK, num_single_layers=1, joint_attention_dim=64
    ),
    "Ideogram 4": partial(
        diffusers.Ideogram4Transformer2DModel, **_BLOCK, intermediate_size=128, adaln_dim=32, llm_features_dim=64
    ),
    "JoyImage": partial(
        diffusers.JoyImageEditTransformer3DModel, num_layers=1, num_attention_heads=1, hidden_size=128, text_dim=64
    ),
    "ACE-Step 1.5": partial(
        diffusers.AceStepTransformer1DModel, num_hidden_layers=2, hidden_size=64, intermediate_size=64,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    ),
}  # fmt: skip
# Networks beside the transformer, which ComfyUI keeps in one with it.
BESIDE = {
    ("Anima", "text_conditioner"): partial(
        diffusers.AnimaTextConditioner, source_dim=64, target_dim=64, model_dim=64, num_layers=1,
        num_attention_heads=2,
    ),
    ("LTX-2", "connectors"): partial(
        LTX2TextConnectors, caption_channels=64, per_modality_projections=True, video_hidden_dim=64,
        audio_hidden_dim=64, **{
            f"{stream}_connector_{size}": number
            for stream in ("video", "audio")
            for size, number in (
                ("num_attention_heads", 2), ("attention_head_dim", 32), ("num_layers", 1),
                ("num_learnable_registers", 128),
            )
        },
    ),
}  # fmt: skip


def main(folder: Path) -> None:
    """Write what each network's weights are called."""
    here = {path.stem for path in folder.glob("*.safetensors")}
    for name in here & CONVERTED.keys():
        state = CONVERTED[name](load_file(folder / f"{name}.safetensors"))
        _save(folder / name / "transformer.safetensors", state, "converted")
    built = {(name, _component(name)): build for name, build in BUILT.items()} | BESIDE
    for (name, component), build in built.items():
        if name in here:
            with torch.device("meta"):
                shapes = {key: value.shape for key, value in build().state_dict().items()}
            zeros = {key: torch.zeros(shape) for key, shape in shapes.items()}
            _save(folder / name / f"{component}.safetensors", zeros, "built")


def _component(name: str) -> str:
    """What the pipeline calls the network."""
    return "unet" if BUILT[name].func is diffusers.UNet2DConditionModel else "transformer"


def _save(path: Path, state: State, how: str) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path, {"how": how})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
