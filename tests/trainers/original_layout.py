"""A diffusers pipeline of SD 1.5's kind under the names of its original checkpoints, one file for all parts."""

import re

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def checkpoint(pipe):
    """All weights, by the names that `from_single_file` looks for."""
    state = {f"model.diffusion_model.{unet_name(k, pipe.unet)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        conv = ".attentions." in key and key.endswith("weight") and "norm" not in key
        name = vae_name(key, len(pipe.vae.config.block_out_channels))
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if conv else value
    for key, value in pipe.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {key: value.contiguous() for key, value in state.items()}


def unet_name(key, unet):
    """down_blocks.0.resnets.0.conv1.weight -> input_blocks.1.0.in_layers.2.weight, and so on."""
    for ours, original in UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, original, 1)
    stride = unet.config.layers_per_block + 1
    where, number, kind, place, rest = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", key
    ).groups()
    if kind == "resnets":
        layer, tail = rest.rsplit(".", 1)
        rest = f"{RESNET[layer]}.{tail}"
    if where is None:
        return f"middle_block.{2 * int(place) if kind == 'resnets' else 1}.{rest}"
    block, place = int(number), int(place)
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * stride}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        after = 2 if getattr(unet.up_blocks[block], "attentions", None) else 1
        return f"output_blocks.{block * stride + stride - 1}.{after}.{rest}"
    first = 1 + block * stride if where == "down" else block * stride
    return f"{'input' if where == 'down' else 'output'}_blocks.{first + place}.{int(kind == 'attentions')}.{rest}"


def vae_name(key, blocks):
    """decoder.up_blocks.0.resnets.1.conv1.weight -> decoder.up.3.block.1.conv1.weight, and so on."""
    if ".attentions." in key:
        for ours, original in VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{original}.")
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = key.replace("mid_block.attentions.0", "mid.attn_1")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{blocks - 1 - int(match[1])}", key)
    return key.replace("resnets", "block").replace("samplers.0.conv", "sample.conv")
