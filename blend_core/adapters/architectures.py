"""Model families: the marks by which their names are told, and what diffusers calls the weights of the original code.

A table has sections `[native prefix = diffusers prefix]` and in them rows `native = diffusers`; a row of one name has
it on both sides, `*` stands for every name below the prefix, `#` for a number. Several names on the right are a fused
weight cut up, their rows one after the other: those with `^` have as many rows as the weight has columns (`^3`: three
times as many), the others share the rest; `-` is a part without a name. `~` says that the halves of the rows change
places (scale and shift, gate and value).

Hosts with a map of their own (ComfyUI) need the rows which that map lacks; hosts of diffusers need them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from .renames import Rename, read_table


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


_WAN_BLOCK = """
    modulation = scale_shift_table
    norm3 = norm2
    ffn.0 = ffn.net.0.proj
    ffn.2 = ffn.net.2
    self_attn.q = attn1.to_q
    self_attn.k = attn1.to_k
    self_attn.v = attn1.to_v
    self_attn.o = attn1.to_out.0
    self_attn.norm_q = attn1.norm_q
    self_attn.norm_k = attn1.norm_k
    cross_attn.q = attn2.to_q
    cross_attn.k = attn2.to_k
    cross_attn.v = attn2.to_v
    cross_attn.o = attn2.to_out.0
    cross_attn.norm_q = attn2.norm_q
    cross_attn.norm_k = attn2.norm_k
    cross_attn.k_img = attn2.add_k_proj
    cross_attn.v_img = attn2.add_v_proj
    cross_attn.norm_k_img = attn2.norm_added_k
"""
_WAN = f"""
[blocks.# = blocks.#]{_WAN_BLOCK}
[vace_blocks.# = vace_blocks.#]{_WAN_BLOCK}
    before_proj = proj_in
    after_proj = proj_out
[blocks.# = blocks.#]
    self_attn.q = self_attn.to_q
    self_attn.k = self_attn.to_k
    self_attn.v = self_attn.to_v
    self_attn.o = self_attn.to_out.0
    cross_attn.q = cross_attn.to_q
    cross_attn.k = cross_attn.to_k
    cross_attn.v = cross_attn.to_v
    cross_attn.o = cross_attn.to_out.0
    cross_attn.k_img = cross_attn.add_k_proj
    cross_attn.v_img = cross_attn.add_v_proj
    cross_attn.norm_k_img = cross_attn.norm_added_k
[=]
    head.head = proj_out
    head.modulation = scale_shift_table
    time_embedding.0 = condition_embedder.time_embedder.linear_1
    time_embedding.2 = condition_embedder.time_embedder.linear_2
    time_projection.1 = condition_embedder.time_proj
    text_embedding.0 = condition_embedder.text_embedder.linear_1
    text_embedding.2 = condition_embedder.text_embedder.linear_2
    img_emb.proj.0 = condition_embedder.image_embedder.norm1
    img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
    img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
    img_emb.proj.4 = condition_embedder.image_embedder.norm2
    motion_encoder.dec.direction = motion_encoder.motion_synthesis_weight
    motion_encoder.enc.net_app.convs.0.0 = motion_encoder.conv_in
[motion_encoder.enc.fc = motion_encoder.motion_network]
    *
"""

_FLUX_DOUBLE = """
    img_attn.qkv = attn.to_q attn.to_k attn.to_v
    txt_attn.qkv = attn.add_q_proj attn.add_k_proj attn.add_v_proj
    img_attn.proj = attn.to_out.0
    txt_attn.proj = attn.to_add_out
    img_attn.norm.query_norm = attn.norm_q
    img_attn.norm.key_norm = attn.norm_k
    txt_attn.norm.query_norm = attn.norm_added_q
    txt_attn.norm.key_norm = attn.norm_added_k
    img_attn.norm.query_norm.scale = attn.norm_q
    img_attn.norm.key_norm.scale = attn.norm_k
    txt_attn.norm.query_norm.scale = attn.norm_added_q
    txt_attn.norm.key_norm.scale = attn.norm_added_k
    img_mod.lin = norm1.linear
    txt_mod.lin = norm1_context.linear
    img_mlp.0 = ff.net.0.proj
    img_mlp.2 = ff.net.2
    txt_mlp.0 = ff_context.net.0.proj
    txt_mlp.2 = ff_context.net.2
    img_mlp.0 = ff.linear_in
    img_mlp.2 = ff.linear_out
    txt_mlp.0 = ff_context.linear_in
    txt_mlp.2 = ff_context.linear_out
"""
_FLUX_SINGLE = """
    linear1 = attn.to_q^ attn.to_k^ attn.to_v^ proj_mlp
    linear1_qkv = attn.to_q attn.to_k attn.to_v
    linear2 = proj_out
    modulation.lin = norm.linear
    norm.query_norm = attn.norm_q
    norm.key_norm = attn.norm_k
    norm.query_norm.scale = attn.norm_q
    norm.key_norm.scale = attn.norm_k
    linear1 = attn.to_qkv_mlp_proj
    linear2 = attn.to_out
"""
_FLUX_BLOCKS = f"""
[double_blocks.# = transformer_blocks.#]{_FLUX_DOUBLE}
[single_blocks.# = single_transformer_blocks.#]{_FLUX_SINGLE}
[single_blocks.# = single_blocks.#]
    linear1 = linear1_qkv^3 -
[=]
    final_layer.linear = proj_out
    final_layer.adaLN_modulation.1 =~ norm_out.linear
"""


def _embedders(native: str, diffusers: str, *ends: str) -> str:
    """The two layers of an embedder of numbers, under several names."""
    pairs = zip(ends, ("linear_1", "linear_2"), strict=True)
    return "\n".join(f"    {native}.{end} = {diffusers}.{linear}" for end, linear in pairs) + "\n"


_FLUX = f"""{_FLUX_BLOCKS}
    img_in = x_embedder
    txt_in = context_embedder
{_embedders("time_in", "time_text_embed.timestep_embedder", "in_layer", "out_layer")}
{_embedders("vector_in", "time_text_embed.text_embedder", "in_layer", "out_layer")}
{_embedders("guidance_in", "time_text_embed.guidance_embedder", "in_layer", "out_layer")}
{_embedders("time_in", "time_embed.timestep_embedder", "in_layer", "out_layer")}
"""
_FLUX_2 = f"""{_FLUX_BLOCKS}
    img_in = x_embedder
    txt_in = context_embedder
    double_stream_modulation_img.lin = double_stream_modulation_img.linear
    double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
    single_stream_modulation.lin = single_stream_modulation.linear
{_embedders("time_in", "time_guidance_embed.timestep_embedder", "in_layer", "out_layer")}
{_embedders("guidance_in", "time_guidance_embed.guidance_embedder", "in_layer", "out_layer")}
"""
_CHROMA = f"""{_FLUX_BLOCKS}
    img_in = x_embedder
    txt_in = context_embedder
[distilled_guidance_layer.layers.# = distilled_guidance_layer.layers.#]
    in_layer = linear_1
    out_layer = linear_2
[=]
    distilled_guidance_layer.norms.#.scale = distilled_guidance_layer.norms.#
"""
_HUNYUAN = f"""{_FLUX_BLOCKS}
    img_in.proj = x_embedder.proj
    time_in.in_layer = time_text_embed.timestep_embedder.linear_1
    time_in.out_layer = time_text_embed.timestep_embedder.linear_2
{_embedders("vector_in", "time_text_embed.text_embedder", "in_layer", "out_layer")}
{_embedders("guidance_in", "time_text_embed.guidance_embedder", "in_layer", "out_layer")}
{_embedders("time_in", "time_guidance_embed.timestep_embedder", "in_layer", "out_layer")}
{_embedders("guidance_in", "time_guidance_embed.guidance_embedder", "in_layer", "out_layer")}
{_embedders("time_in", "time_embed.timestep_embedder", "in_layer", "out_layer")}
    time_r_in.in_layer = time_guidance_embed.timestep_embedder_r.linear_1
    time_r_in.out_layer = time_guidance_embed.timestep_embedder_r.linear_2
    txt_in.input_embedder = context_embedder.proj_in
{_embedders("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder", "in_layer", "out_layer")}
{_embedders("txt_in.c_embedder", "context_embedder.time_text_embed.text_embedder", "in_layer", "out_layer")}
    byt5_in.layernorm = context_embedder_2.norm
    byt5_in.fc1 = context_embedder_2.linear_1
    byt5_in.fc2 = context_embedder_2.linear_2
    byt5_in.fc3 = context_embedder_2.linear_3
    cond_type_embedding = cond_type_embed
    vision_in.proj.0 = image_embedder.norm_in
    vision_in.proj.1 = image_embedder.linear_1
    vision_in.proj.3 = image_embedder.linear_2
    vision_in.proj.4 = image_embedder.norm_out
[txt_in.individual_token_refiner.blocks.# = context_embedder.token_refiner.refiner_blocks.#]
    norm1
    norm2
    self_attn.qkv = attn.to_q attn.to_k attn.to_v
    self_attn.proj = attn.to_out.0
    mlp.0 = ff.net.0.proj
    mlp.2 = ff.net.2
    adaLN_modulation.1 = norm_out.linear
"""

# The context block's adaLN is missing on purpose: its last block swaps halves, and its number is the host's to know.
_SD3 = """
[joint_blocks.# = transformer_blocks.#]
    x_block.attn.qkv = attn.to_q attn.to_k attn.to_v
    x_block.attn2.qkv = attn2.to_q attn2.to_k attn2.to_v
    context_block.attn.qkv = attn.add_q_proj attn.add_k_proj attn.add_v_proj
    x_block.attn.proj = attn.to_out.0
    x_block.attn2.proj = attn2.to_out.0
    context_block.attn.proj = attn.to_add_out
    x_block.attn.ln_q = attn.norm_q
    x_block.attn.ln_k = attn.norm_k
    x_block.attn2.ln_q = attn2.norm_q
    x_block.attn2.ln_k = attn2.norm_k
    context_block.attn.ln_q = attn.norm_added_q
    context_block.attn.ln_k = attn.norm_added_k
    x_block.mlp.fc1 = ff.net.0.proj
    x_block.mlp.fc2 = ff.net.2
    context_block.mlp.fc1 = ff_context.net.0.proj
    context_block.mlp.fc2 = ff_context.net.2
    x_block.adaLN_modulation.1 = norm1.linear
[=]
    pos_embed = pos_embed.pos_embed
    x_embedder.proj = pos_embed.proj
    t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
    t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
    y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
    y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
    final_layer.linear = proj_out
    final_layer.adaLN_modulation.1 =~ norm_out.linear
"""
_AURAFLOW = """
[double_layers.# = joint_transformer_blocks.#]
    attn.w1q = attn.add_q_proj
    attn.w1k = attn.add_k_proj
    attn.w1v = attn.add_v_proj
    attn.w1o = attn.to_add_out
    attn.w2q = attn.to_q
    attn.w2k = attn.to_k
    attn.w2v = attn.to_v
    attn.w2o = attn.to_out.0
    mlpX.c_fc1 = ff.linear_1
    mlpX.c_fc2 = ff.linear_2
    mlpX.c_proj = ff.out_projection
    mlpC.c_fc1 = ff_context.linear_1
    mlpC.c_fc2 = ff_context.linear_2
    mlpC.c_proj = ff_context.out_projection
    modX.1 = norm1.linear
    modC.1 = norm1_context.linear
[single_layers.# = single_transformer_blocks.#]
    attn.w1q = attn.to_q
    attn.w1k = attn.to_k
    attn.w1v = attn.to_v
    attn.w1o = attn.to_out.0
    mlp.c_fc1 = ff.linear_1
    mlp.c_fc2 = ff.linear_2
    mlp.c_proj = ff.out_projection
    modCX.1 = norm1.linear
[=]
    positional_encoding = pos_embed.pos_embed
    init_x_linear = pos_embed.proj
    cond_seq_linear = context_embedder
    t_embedder.mlp.0 = time_step_proj.linear_1
    t_embedder.mlp.2 = time_step_proj.linear_2
    final_linear = proj_out
    modF.1 =~ norm_out.linear
"""
_PIXART = """
[blocks.# = transformer_blocks.#]
    scale_shift_table
    attn.qkv = attn1.to_q attn1.to_k attn1.to_v
    attn.proj = attn1.to_out.0
    cross_attn.q_linear = attn2.to_q
    cross_attn.kv_linear = attn2.to_k attn2.to_v
    cross_attn.proj = attn2.to_out.0
    mlp.fc1 = ff.net.0.proj
    mlp.fc2 = ff.net.2
[=]
    x_embedder.proj = pos_embed.proj
    t_embedder.mlp.0 = adaln_single.emb.timestep_embedder.linear_1
    t_embedder.mlp.2 = adaln_single.emb.timestep_embedder.linear_2
    t_block.1 = adaln_single.linear
    y_embedder.y_proj.fc1 = caption_projection.linear_1
    y_embedder.y_proj.fc2 = caption_projection.linear_2
    final_layer.linear = proj_out
    final_layer.scale_shift_table = scale_shift_table
"""
_HUNYUAN_DIT = """
[blocks.# = blocks.#]
    norm1 = norm1.norm
    norm2 = norm3
    norm3 = norm2
    default_modulation.1 = norm1.linear
    attn1.Wqkv = attn1.to_q attn1.to_k attn1.to_v
    attn1.q_norm = attn1.norm_q
    attn1.k_norm = attn1.norm_k
    attn1.out_proj = attn1.to_out.0
    attn2.q_proj = attn2.to_q
    attn2.kv_proj = attn2.to_k attn2.to_v
    attn2.q_norm = attn2.norm_q
    attn2.k_norm = attn2.norm_k
    attn2.out_proj = attn2.to_out.0
    mlp.fc1 = ff.net.0.proj
    mlp.fc2 = ff.net.2
[pooler = time_extra_emb.pooler]
    *
[=]
    x_embedder.proj = pos_embed.proj
    mlp_t5.0 = text_embedder.linear_1
    mlp_t5.2 = text_embedder.linear_2
    t_embedder.mlp.0 = time_extra_emb.timestep_embedder.linear_1
    t_embedder.mlp.2 = time_extra_emb.timestep_embedder.linear_2
    style_embedder = time_extra_emb.style_embedder
    extra_embedder.0 = time_extra_emb.extra_embedder.linear_1
    extra_embedder.2 = time_extra_emb.extra_embedder.linear_2
    final_layer.linear = proj_out
    final_layer.adaLN_modulation.1 =~ norm_out.linear
"""
_COGVIDEO = """
[blocks.# = transformer_blocks.#]
    norm1.linear
    norm1.norm
    norm2.linear
    norm2.norm
    q = attn1.to_q
    k = attn1.to_k
    v = attn1.to_v
    norm_q = attn1.norm_q
    norm_k = attn1.norm_k
    attn_out = attn1.to_out.0
    ff_proj = ff.net.0.proj
    ff_out = ff.net.2
"""
_MOCHI = """
[blocks.# = transformer_blocks.#]
    mod_x = norm1.linear
    mod_y = norm1_context.linear
    mod_y = norm1_context.linear_1
    attn.qkv_x = attn1.to_q attn1.to_k attn1.to_v
    attn.qkv_y = attn1.add_q_proj attn1.add_k_proj attn1.add_v_proj
    attn.q_norm_x = attn1.norm_q
    attn.k_norm_x = attn1.norm_k
    attn.q_norm_y = attn1.norm_added_q
    attn.k_norm_y = attn1.norm_added_k
    attn.proj_x = attn1.to_out.0
    attn.proj_y = attn1.to_add_out
    mlp_x.w1 =~ ff.net.0.proj
    mlp_x.w2 = ff.net.2
    mlp_y.w1 =~ ff_context.net.0.proj
    mlp_y.w2 = ff_context.net.2
[t5_y_embedder = time_embed.pooler]
    *
[=]
    x_embedder.proj = patch_embed.proj
    t_embedder.mlp.0 = time_embed.timestep_embedder.linear_1
    t_embedder.mlp.2 = time_embed.timestep_embedder.linear_2
    t5_yproj = time_embed.caption_proj
    final_layer.mod =~ norm_out.linear
    final_layer.linear = proj_out
"""
_LTX_ATTENTION = "\n".join(
    f"    {attention}.{side}_norm = {attention}.norm_{side}"
    for attention in (
        "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn",
    )
    for side in "qk"
)  # fmt: skip
_LTX = f"""
[transformer_blocks.# = transformer_blocks.#]
{_LTX_ATTENTION}
    scale_shift_table_a2v_ca_audio = audio_a2v_cross_attn_scale_shift_table
    scale_shift_table_a2v_ca_video = video_a2v_cross_attn_scale_shift_table
[adaln_single = time_embed]
    *
[audio_adaln_single = audio_time_embed]
    *
[prompt_adaln_single = prompt_adaln]
    *
[audio_prompt_adaln_single = audio_prompt_adaln]
    *
[av_ca_a2v_gate_adaln_single = av_cross_attn_video_a2v_gate]
    *
[av_ca_v2a_gate_adaln_single = av_cross_attn_audio_v2a_gate]
    *
[av_ca_video_scale_shift_adaln_single = av_cross_attn_video_scale_shift]
    *
[av_ca_audio_scale_shift_adaln_single = av_cross_attn_audio_scale_shift]
    *
[=]
    patchify_proj = proj_in
    audio_patchify_proj = audio_proj_in
[video_embeddings_connector.transformer_1d_blocks.# = connectors.video_connector.transformer_blocks.#]
    attn1.q_norm = attn1.norm_q
    attn1.k_norm = attn1.norm_k
    *
[audio_embeddings_connector.transformer_1d_blocks.# = connectors.audio_connector.transformer_blocks.#]
    attn1.q_norm = attn1.norm_q
    attn1.k_norm = attn1.norm_k
    *
[video_embeddings_connector = connectors.video_connector]
    *
[audio_embeddings_connector = connectors.audio_connector]
    *
"""
_COSMOS_1 = """
[blocks.block# = transformer_blocks.#]
    blocks.0.block.attn.to_q.0 = attn1.to_q
    blocks.0.block.attn.to_q.1 = attn1.norm_q
    blocks.0.block.attn.to_k.0 = attn1.to_k
    blocks.0.block.attn.to_k.1 = attn1.norm_k
    blocks.0.block.attn.to_v.0 = attn1.to_v
    blocks.0.block.attn.to_out.0 = attn1.to_out.0
    blocks.1.block.attn.to_q.0 = attn2.to_q
    blocks.1.block.attn.to_q.1 = attn2.norm_q
    blocks.1.block.attn.to_k.0 = attn2.to_k
    blocks.1.block.attn.to_k.1 = attn2.norm_k
    blocks.1.block.attn.to_v.0 = attn2.to_v
    blocks.1.block.attn.to_out.0 = attn2.to_out.0
    blocks.2.block.layer1 = ff.net.0.proj
    blocks.2.block.layer2 = ff.net.2
    blocks.0.adaLN_modulation.1 = norm1.linear_1
    blocks.0.adaLN_modulation.2 = norm1.linear_2
    blocks.1.adaLN_modulation.1 = norm2.linear_1
    blocks.1.adaLN_modulation.2 = norm2.linear_2
    blocks.2.adaLN_modulation.1 = norm3.linear_1
    blocks.2.adaLN_modulation.2 = norm3.linear_2
[extra_pos_embedder = learnable_pos_embed]
    *
[=]
    t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
    t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
    affline_norm = time_embed.norm
    x_embedder.proj.1 = patch_embed.proj
    final_layer.adaLN_modulation.1 = norm_out.linear_1
    final_layer.adaLN_modulation.2 = norm_out.linear_2
    final_layer.linear = proj_out
"""
_COSMOS_2 = """
[blocks.# = transformer_blocks.#]
    adaln_modulation_self_attn.1 = norm1.linear_1
    adaln_modulation_self_attn.2 = norm1.linear_2
    adaln_modulation_cross_attn.1 = norm2.linear_1
    adaln_modulation_cross_attn.2 = norm2.linear_2
    adaln_modulation_mlp.1 = norm3.linear_1
    adaln_modulation_mlp.2 = norm3.linear_2
    self_attn.q_proj = attn1.to_q
    self_attn.k_proj = attn1.to_k
    self_attn.v_proj = attn1.to_v
    self_attn.output_proj = attn1.to_out.0
    self_attn.q_norm = attn1.norm_q
    self_attn.k_norm = attn1.norm_k
    cross_attn.q_proj = attn2.to_q
    cross_attn.k_proj = attn2.to_k
    cross_attn.v_proj = attn2.to_v
    cross_attn.output_proj = attn2.to_out.0
    cross_attn.q_norm = attn2.norm_q
    cross_attn.k_norm = attn2.norm_k
    mlp.layer1 = ff.net.0.proj
    mlp.layer2 = ff.net.2
[llm_adapter = text_conditioner]
    *
[=]
    t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
    t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
    t_embedding_norm = time_embed.norm
    x_embedder.proj.1 = patch_embed.proj
    final_layer.adaln_modulation.1 = norm_out.linear_1
    final_layer.adaln_modulation.2 = norm_out.linear_2
    final_layer.linear = proj_out
"""
_LUMINA_BLOCK = """
    attention.qkv = attn.to_q^ attn.to_k attn.to_v
    attention.out = attn.to_out.0
    attention.q_norm = attn.norm_q
    attention.k_norm = attn.norm_k
    feed_forward.w1 = feed_forward.linear_1
    feed_forward.w2 = feed_forward.linear_2
    feed_forward.w3 = feed_forward.linear_3
    adaLN_modulation.1 = norm1.linear
    attention_norm1 = norm1.norm
    attention_norm2 = norm2
"""
_Z_IMAGE_BLOCK = """
    attention.qkv = attention.to_q attention.to_k attention.to_v
    attention.out = attention.to_out.0
    attention.q_norm = attention.norm_q
    attention.k_norm = attention.norm_k
"""
_LUMINA_2 = f"""
[layers.# = layers.#]{_LUMINA_BLOCK}{_Z_IMAGE_BLOCK}
[noise_refiner.# = noise_refiner.#]{_LUMINA_BLOCK}{_Z_IMAGE_BLOCK}
[context_refiner.# = context_refiner.#]{_LUMINA_BLOCK}{_Z_IMAGE_BLOCK}
    attention_norm1 = norm1
[final_layer = all_final_layer.2-1]
    *
[=]
    x_embedder = all_x_embedder.2-1
    t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
    t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
    cap_embedder.# = time_caption_embed.caption_embedder.#
    final_layer.adaLN_modulation.1 = norm_out.linear_1
    final_layer.linear = norm_out.linear_2
"""
_IDEOGRAM = """
[layers.# = layers.#]
    attention.qkv = attention.to_q attention.to_k attention.to_v
    attention.o = attention.to_out.0
"""
_KREA_BLOCK = """
    attn.wq = attn.to_q
    attn.wk = attn.to_k
    attn.wv = attn.to_v
    attn.wo = attn.to_out.0
    attn.wo = attn.to_out
    attn.gate = attn.to_gate
    attn.qknorm.qnorm.scale = attn.norm_q
    attn.qknorm.knorm.scale = attn.norm_k
    mlp.gate = ff.gate
    mlp.up = ff.up
    mlp.down = ff.down
    prenorm.scale = norm1
    postnorm.scale = norm2
    mod.lin = scale_shift_table
"""
_KREA_2 = f"""
[blocks.# = transformer_blocks.#]{_KREA_BLOCK}
[txtfusion.layerwise_blocks.# = text_fusion.layerwise_blocks.#]{_KREA_BLOCK}
[txtfusion.refiner_blocks.# = text_fusion.refiner_blocks.#]{_KREA_BLOCK}
[=]
    first = img_in
    tmlp.0 = time_embed.linear_1
    tmlp.2 = time_embed.linear_2
    tproj.1 = time_mod_proj
    txtmlp.0.scale = txt_in.norm
    txtmlp.1 = txt_in.linear_1
    txtmlp.3 = txt_in.linear_2
    txtfusion.projector = text_fusion.projector
    last.norm.scale = final_layer.norm
    last.linear = final_layer.linear
    last.modulation.lin = final_layer.scale_shift_table
"""
_ACE_STEP_15 = """
[decoder.layers.# = layers.#]
    self_attn.q_proj = self_attn.to_q
    self_attn.k_proj = self_attn.to_k
    self_attn.v_proj = self_attn.to_v
    self_attn.o_proj = self_attn.to_out.0
    self_attn.q_norm = self_attn.norm_q
    self_attn.k_norm = self_attn.norm_k
    cross_attn.q_proj = cross_attn.to_q
    cross_attn.k_proj = cross_attn.to_k
    cross_attn.v_proj = cross_attn.to_v
    cross_attn.o_proj = cross_attn.to_out.0
    cross_attn.q_norm = cross_attn.norm_q
    cross_attn.k_norm = cross_attn.norm_k
[decoder = ]
    proj_in.1 = proj_in_conv
    proj_out.1 = proj_out_conv
    *
"""
_MINIMAX_BLOCK = """
    norm1
    norm2
    adaln_proj.linear
    attn.qkv_proj = attn.to_q attn.to_k attn.to_v
    attn.q_norm = attn.norm_q
    attn.k_norm = attn.norm_k
    attn.out_proj = attn.to_out.0
    mlp.fc1 =~ ff.net.0.proj
    mlp.fc2 = ff.net.2
"""
_MINIMAX_H3 = f"""
[blocks.# = transformer_blocks.#]{_MINIMAX_BLOCK}
[token_refiner.blocks.# = token_refiner.refiner_blocks.#]{_MINIMAX_BLOCK}
[=]
    video_patch_proj = proj_in
    audio_patch_proj = audio_proj_in
    condition_proj = context_embedder
    time_embedder.proj_in = time_embedder.linear_1
    time_embedder.proj_out = time_embedder.linear_2
    final_layer.norm = norm_out.norm
    final_layer.adaln_proj.linear = norm_out.linear
    final_layer.video_out = proj_out
    final_layer.audio_out = audio_proj_out
"""
_STABLE_AUDIO = """
[transformer.layers.# = transformer_blocks.#]
    pre_norm.gamma = norm1
    pre_norm.beta = norm1.bias
    self_attn.to_qkv = attn1.to_q attn1.to_k attn1.to_v
    self_attn.to_out = attn1.to_out.0
    cross_attend_norm.gamma = norm2
    cross_attend_norm.beta = norm2.bias
    cross_attn.to_q = attn2.to_q
    cross_attn.to_kv = attn2.to_k attn2.to_v
    cross_attn.to_out = attn2.to_out.0
    ff_norm.gamma = norm3
    ff_norm.beta = norm3.bias
    ff.ff.0.proj = ff.net.0.proj
    ff.ff.2 = ff.net.2
[=]
    timestep_features.weight = time_proj
    to_timestep_embed.0 = timestep_proj.0
    to_timestep_embed.2 = timestep_proj.2
    to_global_embed.0 = global_proj.0
    to_global_embed.2 = global_proj.2
    to_cond_embed.0 = cross_attention_proj.0
    to_cond_embed.2 = cross_attention_proj.2
    transformer.project_in = proj_in
    transformer.project_out = proj_out
"""

# The first whose mark a name bears is what a set of names looks like: those that share names with others come first.
ARCHITECTURES = (
    Architecture("Hunyuan Video", "txt_in_individual_token_refiner_*", "context_embedder_token_refiner_*",
                 read_table(_HUNYUAN)),
    Architecture("Flux 2", "double_stream_modulation_img_lin", "double_stream_modulation_img_linear",
                 read_table(_FLUX_2)),
    Architecture("Chroma", "distilled_guidance_layer_layers_#_in_layer", "distilled_guidance_layer_layers_#_linear_1",
                 read_table(_CHROMA)),
    Architecture("Flux", "double_blocks_#_*|single_blocks_#_*", "single_transformer_blocks_#_*", read_table(_FLUX)),
    Architecture("SD3", "joint_blocks_#_*", "", read_table(_SD3)),
    Architecture("AuraFlow", "double_layers_#_*|single_layers_#_attn_w1*", "joint_transformer_blocks_#_*",
                 read_table(_AURAFLOW)),
    Architecture("SD", "input_blocks_#_*|middle_block_#_*|output_blocks_#_*",
                 "down_blocks_#_*|up_blocks_#_*|mid_block_*"),
    Architecture("Cosmos", "blocks_block#_*", "", read_table(_COSMOS_1)),
    Architecture("Cosmos Predict 2", "blocks_#_self_attn_output_proj|blocks_#_adaln_modulation_*",
                 "transformer_blocks_#_norm1_linear_1", read_table(_COSMOS_2)),
    Architecture("Wan", "blocks_#_self_attn_o|blocks_#_self_attn_q|blocks_#_cross_attn_k|blocks_#_ffn_0|blocks_#_ffn_2",
                 "blocks_#_attn1_to_*|condition_embedder_*", read_table(_WAN)),
    Architecture("Hunyuan DiT", "blocks_#_attn1_Wqkv|blocks_#_attn2_kv_proj|blocks_#_default_modulation_1",
                 "time_extra_emb_*", read_table(_HUNYUAN_DIT)),
    Architecture("PixArt", "blocks_#_cross_attn_kv_linear", "adaln_single_emb_*", read_table(_PIXART)),
    Architecture("CogVideoX", "blocks_#_ff_proj|blocks_#_attn_out", "transformer_blocks_#_norm1_norm",
                 read_table(_COGVIDEO)),
    Architecture("Mochi", "blocks_#_attn_qkv_x|t5_yproj", "transformer_blocks_#_attn1_add_q_proj",
                 read_table(_MOCHI)),
    Architecture("LTX-Video", "patchify_proj", "time_embed_emb_*|av_cross_attn_*", read_table(_LTX)),
    Architecture("Ideogram 4", "layers_#_attention_o", "embed_image_indicator", read_table(_IDEOGRAM)),
    Architecture("Lumina 2 or Z-Image", "layers_#_attention_qkv|layers_#_feed_forward_w1",
                 "all_x_embedder_2-1|time_caption_embed_caption_embedder_#|layers_#_attn_to_q|layers_#_attention_to_q",
                 read_table(_LUMINA_2)),
    Architecture("Krea 2", "blocks_#_attn_wq|txtfusion_*", "text_fusion_*", read_table(_KREA_2)),
    Architecture("ACE-Step 1.5", "decoder_layers_#_*", "proj_in_conv", read_table(_ACE_STEP_15)),
    Architecture("MiniMax H3", "video_patch_proj|blocks_#_attn_qkv_proj", "token_refiner_refiner_blocks_#_*",
                 read_table(_MINIMAX_H3), ("_qkv_proj", "_q_norm")),
    Architecture("Stable Audio", "layers_#_self_attn_to_qkv", "timestep_proj_#",
                 read_table(_STABLE_AUDIO)),
    Architecture("HiDream", "double_stream_blocks_#_block_*|single_stream_blocks_#_block_*", ""),
    Architecture("Qwen-Image", "", "transformer_blocks_#_img_mod_1|transformer_blocks_#_img_mlp_*"),
    Architecture("MMDiT", "", "transformer_blocks_#_attn_*|transformer_blocks_#_ff_context_*"),
)  # fmt: skip
