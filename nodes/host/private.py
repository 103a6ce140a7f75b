"""What we read of ComfyUI and of torch that is no public interface: a function for each.

Read in ComfyUI 0.14.1, 0.28.0 and 0.33.0 (torch 2.12) unless a line says otherwise. tests/comfyui/test_private.py says
by name what a newer one lacks. What other packs keep stands in other_packs.py.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable

import comfy.ops
import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QuantizedTensor
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, apply_torch_compile_factory
from torch import Tensor, nn

from ...blend_core.network.site import Parameters, as_stored, stored

_MOVING = ("cast_modules_with_vbar", "resolve_cast_module_with_vbar", "cast_bias_weight_with_vbar")
"""Functions of comfy.ops that move weights of streamed models, some of them before their layers run: the last in
0.14.1, the others since 0.28.0."""


def parameter_in_use(module: nn.Module, name: str, device: torch.device) -> Tensor | None:
    """A parameter as ComfyUI's layer computes with it: its patches included, and unpacked where it is packed."""
    parameter = getattr(module, name, None)
    known = isinstance(parameter, QuantizedTensor) or type(parameter) in (Tensor, nn.Parameter)
    if parameter is None or not known:
        return stored(module, name, device)
    if name not in ("weight", "bias") or not isinstance(module, comfy.ops.CastWeightBiasOp):
        return stored(module, name, device)
    wide = parameter.is_floating_point() and parameter.element_size() > 1 and not isinstance(parameter, QuantizedTensor)
    dtype = parameter.dtype if wide else torch.float32
    used = comfy.ops.cast_bias_weight(module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True)
    try:
        value = used[0] if name == "weight" else used[1]
        value = value.dequantize() if isinstance(value, QuantizedTensor) else value
        return value.to(device, dtype, copy=True)  # what was cast may lie in a buffer that the next layer gets
    finally:
        comfy.ops.uncast_bias_weight(module, *used)


def network_of(model: BaseModel) -> nn.Module:
    """ComfyUI's model without its envelopes; torch.compile puts one around the network."""
    return getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)


def names_of_stored(module: nn.Module) -> set[str]:
    """The names of a module's own tensors that a state dict holds, and of its weight and bias however they are kept."""
    return {"weight", "bias", *module._parameters, *module._buffers} - module._non_persistent_buffers_set


def inner_apply_model(model: BaseModel) -> Callable:
    """What ComfyUI's model does with a call below all APPLY_MODEL wrappers."""
    return model._apply_model


def is_compiled(options: dict) -> bool:
    """Whether Torch Compile Model is in the graph. options: the transformer's."""
    return COMPILE_KEY in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


def compiles(wrapper: Callable) -> bool:
    """Whether an APPLY_MODEL wrapper is Torch Compile Model's."""
    return getattr(wrapper, "__module__", "") == apply_torch_compile_factory.__module__


def has_lora_hook(patcher) -> bool:
    """Whether a prompt's LoRA hook is in the model's weights at present."""
    return getattr(patcher, "current_hooks", None) is not None


def sampler_function_name(sampler) -> str:
    """The name of the function that a SAMPLER calls; empty for samplers of other classes."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def is_nested(latents: Tensor) -> bool:
    """Whether latents are several tensors in one (video and audio; since 0.28.0)."""
    return getattr(latents, "is_nested", False)


def reread(patcher) -> nn.Module | None:
    """The network read from its file again; None where its loader does not say how (ComfyUI's own do since 0.28.0)."""
    if not (init := getattr(patcher, "cached_patcher_init", None)):
        return None
    load, arguments, *place = init
    loaded = load(*arguments)
    return (loaded[place[0]] if place else loaded).model


# What a patcher puts back into its network; backup_buffers, as clone_base_uuid, is there since 0.28.0.
_REPLACED = ("backup", "backup_buffers", "object_patches_backup", "hook_backup")


def own_copy(patcher, network: nn.Module):
    """A clone of `patcher` upon another network in which nothing is replaced yet."""
    copied = patcher.clone()
    copied.model, copied.parent, copied.pinned = network, None, set()
    copied.clone_base_uuid = uuid.uuid4()
    for replaced in _REPLACED:
        setattr(copied, replaced, {})
    return copied


PARAMETERS = Parameters(parameter_in_use, ("weight_function", "bias_function"))
"""How ComfyUI keeps a network's parameters."""


def keep_moving_weights_as_stored() -> None:
    """Have ComfyUI move the weights of the base, whatever a pass makes of them. Needed once per process."""
    for name in _MOVING:
        function = getattr(comfy.ops, name, None)
        if function is not None and not hasattr(function, "__wrapped__"):
            setattr(comfy.ops, name, _as_stored(function))


def _as_stored(function):
    @functools.wraps(function)
    def moving(*args, **kwargs):
        with as_stored():
            return function(*args, **kwargs)

    return moving
