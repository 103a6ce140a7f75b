"""Random networks of real architectures, the smallest that ComfyUI detects, loads and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.wan.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor, nn

from . import host

DTYPE = getattr(torch, host.DTYPE)
CONTEXT = 768  # the width of SD 1.5's text encoder
_COMMON = {"dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_middle": -2,
    "context_dim": CONTEXT,
    "use_checkpoint": False,
    "legacy": False,
}
_NARROW = _UNET | {"model_channels": 64, "num_heads": 2}


def filled(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for `network`, whose weights ComfyUI's layers leave uninitialised; activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, value, generator) for name, value in network.state_dict().items()}


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.dim() > 1:
        return torch.randn(like.shape, generator=generator) / like[0].numel() ** 0.5
    if name.endswith(("weight", "scale")):
        return torch.ones(like.shape)
    return torch.randn(like.shape, generator=generator) * 0.02


def load(state: dict[str, Tensor]):
    """A ModelPatcher, as Load Diffusion Model gives it."""
    return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": DTYPE})


def assembled(
    kind: str,
    state: Callable[[], dict[str, torch.Tensor]] = dict,
    fixed: Mapping[str, object] = MappingProxyType({}),
    adapt: Callable[[nn.Module], None] = lambda base_model: None,
    device: str = "cpu",
    **config,
) -> comfy.model_patcher.ModelPatcher:
    """A random model of comfy.supported_models' class `kind`, of a size that its detection would not accept.

    state: weights that lie beside the network.  fixed: settings that the class gives every model of its own.  adapt:
    what else makes it small.  device: where it is built.
    """
    model_config = getattr(comfy.supported_models, kind)(config)
    model_config.unet_config |= fixed
    model_config.set_inference_dtype(DTYPE, None)
    model_config.custom_operations = comfy.ops.disable_weight_init
    model = model_config.get_model(state(), "", device=torch.device(device))
    adapt(model)
    model.diffusion_model.load_state_dict(filled(model.diffusion_model))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model.eval(), device, torch.device("cpu"))


def sd15(**sizes) -> comfy.model_patcher.ModelPatcher:
    """SD 1.5, a fifth as wide as ComfyUI detects it: one level, one attention block each way, 1.2 M parameters."""
    return assembled("SD15", **_NARROW | sizes, out_channels=4, transformer_depth_output=[1, 0])


def unet(seed: int = 0) -> dict[str, Tensor]:
    """The same in the width that ComfyUI detects: 16.2 M parameters."""
    unet_model = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    return filled(unet_model(out_channels=4, transformer_depth_output=[1, 0], **_UNET, **_COMMON), seed)


def sdxl() -> dict[str, Tensor]:
    """KOALA 700M, the smallest network that ComfyUI takes for an SDXL, without its wide levels: 106 M parameters."""
    sizes = {"num_res_blocks": [1, 1, 1], "channel_mult": [1, 1, 1], "num_heads": -1, "num_head_channels": 64}
    transformers = {"transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5]}
    prompts = {"context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential"}
    settings = _UNET | sizes | transformers | prompts | {"use_linear_in_transformer": True}
    return filled(comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(out_channels=4, **settings, **_COMMON))


def control_net(wide: bool = False) -> nn.Module:
    """A ControlNet for `sd15`, or for `unet`."""
    from comfy.cldm.cldm import ControlNet

    network = ControlNet(hint_channels=3, **(_UNET if wide else _NARROW), **_COMMON)
    network.load_state_dict(filled(network, seed=7))
    return network


def sd3() -> dict[str, Tensor]:
    """SD3: two joint blocks, 1.9 M parameters."""
    text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}
    network = comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
        input_size=None,
        pos_embed_scaling_factor=None,
        in_channels=16,
        depth=2,
        adm_in_channels=2048,
        context_embedder_config=text,
        pos_embed_max_size=8,
        num_patches=64,
        **_COMMON,
    )
    return filled(network)


def flux() -> dict[str, Tensor]:
    """Flux schnell: one double and one single block, 1.6 M parameters."""
    network = comfy.ldm.flux.model.Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        **_COMMON,
    )
    return filled(network)


def wan(seed: int = 0, in_dim: int = 16) -> dict[str, Tensor]:
    """Wan 2.1 text to video: one block, 0.9 M parameters; in_dim 36: either network of Wan 2.2 Fun InP."""
    network = comfy.ldm.wan.model.WanModel(
        dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_dim=in_dim, **_COMMON
    )
    return filled(network, seed)


def conditioning(seed: int, width: int = CONTEXT, length: int = 8, **extra) -> list:
    """A random prompt, as a text encoder would give it."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, length, width, generator=generator), extra]]


def pooled(seed: int, width: int) -> Tensor:
    """A random pooled prompt."""
    return torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
