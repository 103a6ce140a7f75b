"""What we read of ComfyUI that is no public interface, and what it was read in: each in a function of its own.

Read in 0.14.1, 0.28.0 and 0.33.0 unless a line says otherwise. tests/comfyui/test_private.py says by name what a newer
one lacks.
"""

from __future__ import annotations

import functools

import comfy.ops
import torch
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QuantizedTensor
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn

from ...blend_core.network.site import Parameters, as_stored, stored

_MOVING = ("cast_modules_with_vbar", "resolve_cast_module_with_vbar", "cast_bias_weight_with_vbar")
"""Functions of comfy.ops that move weights of streamed models, some of them before their layers run: the last in
0.14.1, the others since 0.28.0."""


def parameter_in_use(module: nn.Module, name: str, device: torch.device) -> Tensor | None:
    """A parameter as ComfyUI's layer computes with it: its patches included, and unpacked where it is packed."""
    parameter = getattr(module, name, None)
    known = isinstance(parameter, QuantizedTensor) or type(parameter) in (Tensor, nn.Parameter)
    if name not in ("weight", "bias") or not isinstance(module, comfy.ops.CastWeightBiasOp) or not known:
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


def is_compiled(options: dict) -> bool:
    """Whether Torch Compile Model is in the graph. options: the transformer's."""
    return COMPILE_KEY in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


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
