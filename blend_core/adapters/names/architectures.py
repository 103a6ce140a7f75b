"""Model families: the marks by which their names are told, and what diffusers calls the weights of the original code.

The tables lie in tables/, a file each, and all their names are data: no code but `table` reads them. A table has
sections `[native prefix = diffusers prefix]` and in them rows `native = diffusers`; a row of one name has it on both
sides, `*` stands for every name below the prefix, `#` for a number. Several names on the right are a fused
weight cut up, their rows one after the other: those with `^` have as many rows as the weight has columns (`^3`: three
times as many), the others share the rest; `-` is a part without a name. `~` says that the halves of the rows change
places (scale and shift, gate and value). `< name` stands for the rows of the table of that name, `//` begins a remark.

Hosts with a map of their own (ComfyUI) need the rows which that map lacks; hosts of diffusers need them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .renames import Rename, read_table

_TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Architecture:
    """One family. native, diffusers: names that only its networks have, in the original code and in diffusers'.

    Both are canonical, with # for a number, and may end in * for any end; several stand between |; empty where nothing
    tells them.  per_head: (the end of a fused weight, that of the norm with a number per channel of a head) where the
    original code trains the fused rows head by head, and hosts keep them q, k, v.
    """

    name: str
    native: str
    diffusers: str
    renames: tuple[Rename, ...] = ()
    per_head: tuple[str, str] | None = None


def table(name: str) -> tuple[Rename, ...]:
    """The renames of tables/{name}.txt."""
    return read_table("\n".join(_lines(name)))


def _lines(name: str) -> Iterator[str]:
    """The lines of a table, those of the tables that it names in their places."""
    for line in (_TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("<"):
            yield from _lines(line.strip(" <"))
        elif not line.startswith("//"):
            yield line


# The first whose mark a name bears is what a set of names looks like: those that share names with others come first.
ARCHITECTURES = (
    Architecture("Hunyuan Video", "txt_in_individual_token_refiner_*", "context_embedder_token_refiner_*",
                 table("hunyuan")),
    Architecture("Flux 2", "double_stream_modulation_img_lin", "double_stream_modulation_img_linear",
                 table("flux_2")),
    Architecture("Chroma", "distilled_guidance_layer_layers_#_in_layer", "distilled_guidance_layer_layers_#_linear_1",
                 table("chroma")),
    Architecture("Flux", "double_blocks_#_*|single_blocks_#_*", "single_transformer_blocks_#_*", table("flux")),
    Architecture("SD3", "joint_blocks_#_*", "", table("sd3")),
    Architecture("AuraFlow", "double_layers_#_*|single_layers_#_attn_w1*", "joint_transformer_blocks_#_*",
                 table("auraflow")),
    Architecture("SD", "input_blocks_#_*|middle_block_#_*|output_blocks_#_*",
                 "down_blocks_#_*|up_blocks_#_*|mid_block_*"),
    Architecture("Cosmos", "blocks_block#_*", "", table("cosmos_1")),
    Architecture("Cosmos Predict 2", "blocks_#_self_attn_output_proj|blocks_#_adaln_modulation_*",
                 "transformer_blocks_#_norm1_linear_1", table("cosmos_2")),
    Architecture("Wan", "blocks_#_self_attn_o|blocks_#_self_attn_q|blocks_#_cross_attn_k|blocks_#_ffn_0|blocks_#_ffn_2",
                 "blocks_#_attn1_to_*|condition_embedder_*", table("wan")),
    Architecture("Hunyuan DiT", "blocks_#_attn1_Wqkv|blocks_#_attn2_kv_proj|blocks_#_default_modulation_1",
                 "time_extra_emb_*", table("hunyuan_dit")),
    Architecture("PixArt", "blocks_#_cross_attn_kv_linear", "adaln_single_emb_*", table("pixart")),
    Architecture("CogVideoX", "blocks_#_ff_proj|blocks_#_attn_out", "transformer_blocks_#_norm1_norm",
                 table("cogvideo")),
    Architecture("Mochi", "blocks_#_attn_qkv_x|t5_yproj", "transformer_blocks_#_attn1_add_q_proj",
                 table("mochi")),
    Architecture("LTX-Video", "patchify_proj", "time_embed_emb_*|av_cross_attn_*", table("ltx")),
    Architecture("Ideogram 4", "layers_#_attention_o", "embed_image_indicator", table("ideogram")),
    Architecture("Lumina 2 or Z-Image", "layers_#_attention_qkv|layers_#_feed_forward_w1",
                 "all_x_embedder_2-1|time_caption_embed_caption_embedder_#|layers_#_attn_to_q|layers_#_attention_to_q",
                 table("lumina_2")),
    Architecture("Krea 2", "blocks_#_attn_wq|txtfusion_*", "text_fusion_*", table("krea_2")),
    Architecture("ACE-Step 1.5", "decoder_layers_#_*", "proj_in_conv", table("ace_step_15")),
    Architecture("MiniMax H3", "video_patch_proj|blocks_#_attn_qkv_proj", "token_refiner_refiner_blocks_#_*",
                 table("minimax_h3"), ("_qkv_proj", "_q_norm")),
    Architecture("Stable Audio", "layers_#_self_attn_to_qkv", "timestep_proj_#",
                 table("stable_audio")),
    Architecture("HiDream", "double_stream_blocks_#_block_*|single_stream_blocks_#_block_*", ""),
    Architecture("Qwen-Image", "", "transformer_blocks_#_img_mod_1|transformer_blocks_#_img_mlp_*"),
    Architecture("MMDiT", "", "transformer_blocks_#_attn_*|transformer_blocks_#_ff_context_*"),
)  # fmt: skip
