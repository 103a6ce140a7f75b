"""Names of one weight in different code bases, for hosts whose own map lacks the file's. All names are canonical.

A host with ComfyUI's map needs the XLabs and Wan entries only; a diffusers host also those from native to diffusers.
One fused native weight may be several diffusers weights: their rows follow each other in the order given.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rename:
    """pattern -> names, templates of re.Match.expand. swap: halves of the rows change places on the way."""

    pattern: re.Pattern[str]
    names: tuple[str, ...]
    swap: bool = False


def other_names(name: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    """(names that together are the same weight, whether its halves are swapped), likeliest first."""
    native = _renamed(name, _TO_NATIVE)
    if native is not None:
        yield native
        name = native[0][0]
    diffusers = _renamed(name, _TO_DIFFUSERS)
    if diffusers is not None:
        yield diffusers
    unet = _unet_name(name)
    if unet is not None:
        yield (unet,), False


def _renamed(name: str, renames: tuple[Rename, ...]) -> tuple[tuple[str, ...], bool] | None:
    for rename in renames:
        match = rename.pattern.fullmatch(name)
        if match:
            return tuple(match.expand(template) for template in rename.names), rename.swap
    return None


def _table(prefix: str, new_prefix: str, pairs: dict[str, str]) -> tuple[Rename, ...]:
    """Renames below a numbered block; several new names are separated by spaces."""
    return tuple(
        Rename(re.compile(prefix + old), tuple(new_prefix + name for name in new.split())) for old, new in pairs.items()
    )


_WAN = {
    **{f"attn1_to_{letter}": f"self_attn_{letter}" for letter in "qkv"},
    **{f"attn2_to_{letter}": f"cross_attn_{letter}" for letter in "qkv"},
    "attn1_to_out_0": "self_attn_o",
    "attn2_to_out_0": "cross_attn_o",
    "attn2_add_k_proj": "cross_attn_k_img",
    "attn2_add_v_proj": "cross_attn_v_img",
    "ffn_net_0_proj": "ffn_0",
    "ffn_net_2": "ffn_2",
}
_WAN_TOP = {
    "condition_embedder_time_embedder_linear_1": "time_embedding_0",
    "condition_embedder_time_embedder_linear_2": "time_embedding_2",
    "condition_embedder_time_proj": "time_projection_1",
    "condition_embedder_text_embedder_linear_1": "text_embedding_0",
    "condition_embedder_text_embedder_linear_2": "text_embedding_2",
    "condition_embedder_image_embedder_ff_net_0_proj": "img_emb_proj_1",
    "condition_embedder_image_embedder_ff_net_2": "img_emb_proj_3",
    "proj_out": "head_head",
}
_FLUX_DOUBLE = {
    "img_attn_qkv": "attn_to_q attn_to_k attn_to_v",
    "txt_attn_qkv": "attn_add_q_proj attn_add_k_proj attn_add_v_proj",
    "img_attn_proj": "attn_to_out_0",
    "txt_attn_proj": "attn_to_add_out",
    "img_mod_lin": "norm1_linear",
    "txt_mod_lin": "norm1_context_linear",
    "img_mlp_0": "ff_net_0_proj",
    "img_mlp_2": "ff_net_2",
    "txt_mlp_0": "ff_context_net_0_proj",
    "txt_mlp_2": "ff_context_net_2",
}
_FLUX_SINGLE = {
    "linear1": "attn_to_q attn_to_k attn_to_v proj_mlp",
    "linear1_qkv": "attn_to_q attn_to_k attn_to_v",
    "linear2": "proj_out",
    "modulation_lin": "norm_linear",
}
_FLUX_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{native}_{part}_layer": f"time_text_embed_{diffusers}_linear_{number}"
        for native, diffusers in (
            ("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"),
        )
        for part, number in (("in", 1), ("out", 2))
    },
    "final_layer_linear": "proj_out",
}  # fmt: skip
# The context block's adaLN is missing on purpose: its last block swaps halves, and its number is the host's to know.
_SD3 = {
    "x_block_attn_qkv": "attn_to_q attn_to_k attn_to_v",
    "x_block_attn2_qkv": "attn2_to_q attn2_to_k attn2_to_v",
    "context_block_attn_qkv": "attn_add_q_proj attn_add_k_proj attn_add_v_proj",
    "x_block_attn_proj": "attn_to_out_0",
    "x_block_attn2_proj": "attn2_to_out_0",
    "context_block_attn_proj": "attn_to_add_out",
    "x_block_mlp_fc1": "ff_net_0_proj",
    "x_block_mlp_fc2": "ff_net_2",
    "context_block_mlp_fc1": "ff_context_net_0_proj",
    "context_block_mlp_fc2": "ff_context_net_2",
    "x_block_adaLN_modulation_1": "norm1_linear",
}
_SD3_TOP = {
    "x_embedder_proj": "pos_embed_proj",
    "t_embedder_mlp_0": "time_text_embed_timestep_embedder_linear_1",
    "t_embedder_mlp_2": "time_text_embed_timestep_embedder_linear_2",
    "y_embedder_mlp_0": "time_text_embed_text_embedder_linear_1",
    "y_embedder_mlp_2": "time_text_embed_text_embedder_linear_2",
}

_TO_NATIVE = (
    *(
        Rename(
            re.compile(rf"double_blocks_(\d+)_processor_(qkv|proj)_lora{number}"), (rf"double_blocks_\1_{stream}_\2",)
        )
        for number, stream in ((1, "img_attn"), (2, "txt_attn"))
    ),
    Rename(re.compile(r"single_blocks_(\d+)_processor_qkv_lora"), (r"single_blocks_\1_linear1_qkv",)),
    Rename(re.compile(r"single_blocks_(\d+)_processor_proj_lora"), (r"single_blocks_\1_linear2",)),
    *_table(r"blocks_(\d+)_", r"blocks_\1_", _WAN),
    *_table("", "", _WAN_TOP),
)
_TO_DIFFUSERS = (
    *_table(r"double_blocks_(\d+)_", r"transformer_blocks_\1_", _FLUX_DOUBLE),
    *_table(r"single_blocks_(\d+)_", r"single_transformer_blocks_\1_", _FLUX_SINGLE),
    *_table(r"joint_blocks_(\d+)_", r"transformer_blocks_\1_", _SD3),
    *_table(r"blocks_(\d+)_", r"blocks_\1_", {native: diffusers for diffusers, native in _WAN.items()}),
    *_table("", "", {**_FLUX_TOP, **_SD3_TOP}),
    *_table("", "", {native: diffusers for diffusers, native in _WAN_TOP.items()}),
    Rename(re.compile("final_layer_adaLN_modulation_1"), ("norm_out_linear",), swap=True),
)

_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_TOP = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


def _unet_name(name: str) -> str | None:
    """diffusers name of a UNet weight given its LDM name; SD 1.5, SD 2 and SDXL have two resnets per level."""
    if name in _UNET_TOP:
        return _UNET_TOP[name]
    match = re.fullmatch(r"middle_block_([012])_(.+)", name)
    if match:
        part, rest = int(match[1]), match[2]
        kind = "attentions_0" if part == 1 else f"resnets_{part // 2}"
        return f"mid_block_{kind}_{_RESNET.get(rest, rest)}"
    match = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", name)
    if match:
        return _unet_block(match[1] == "input", int(match[2]), match[3], match[4])
    return None


def _unet_block(down: bool, number: int, part: str, rest: str) -> str:
    # Three entries per level: input blocks count from 1 and end with the downsampler, output blocks hold three resnets.
    level, index = divmod(number - 1 if down else number, 3)
    side = "down" if down else "up"
    if down and rest == "op":
        return f"down_blocks_{level}_downsamplers_0_conv"
    if not down and rest == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    kind = "resnets" if part == "0" else "attentions"
    return f"{side}_blocks_{level}_{kind}_{index}_{_RESNET.get(rest, rest)}"
