"""What we read of torch that is no public interface: a function or name for each. Read in torch 2.4 to 2.13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTION = nn.modules.conv._ConvNd
"""What all convolutions are instances of."""

plain_attributes_of_a_tensor = torch._C._disabled_torch_function_impl
"""The __torch_function__ of a tensor whose attributes are answered without it."""


def padding_of(convolution: nn.modules.conv._ConvNd) -> Sequence[int]:
    """A convolution's padding as torch.nn.functional.pad takes it."""
    return convolution._reversed_padding_repeated_twice


def add_to_all(tensors: list[Tensor], others: list[Tensor], alpha: float) -> None:
    """tensors[i] += alpha * others[i] in place, all of them in one launch."""
    torch.ops.aten._foreach_add_.List(tensors, others, alpha=alpha)


def is_compiled(module: nn.Module) -> bool:
    """Whether Module.compile() was called."""
    return module._compiled_call_impl is not None


def without_values(kind: type[Tensor], like: Tensor, device: torch.device) -> Tensor:
    """A tensor of class `kind` with like's shape and dtype, whose operations its class performs."""
    return Tensor._make_wrapper_subclass(kind, like.shape, dtype=like.dtype, device=device)


def places_of_attributes(module: nn.Module) -> tuple[Mapping[str, Any], ...]:
    """Where a module keeps its attributes, parameters and buffers."""
    return module.__dict__, module._parameters, module._buffers
