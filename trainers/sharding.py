"""Parameters under FSDP 2, of which every process holds a share: whole for files, and shared out again when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def whole(state: Any) -> Any:
    """The state (a tensor, or dicts and lists of them) with shared tensors whole, on the CPU; others stay as they are.

    Every process must call it at once.
    """
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that is whole on every process, shared out as `like` is; itself where that is whole too."""
    if not hasattr(like, "full_tensor") or hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
