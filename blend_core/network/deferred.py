"""A changed parameter that is computed when something computes with it.

Networks ask a layer's weight for its dtype, device or shape far more often than they compute with it outside of the
layer. A Deferred answers these without any work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import BlendError
from .private import plain_attributes_of_a_tensor, without_values


class Deferred(Tensor):
    """A tensor of `like`'s shape and dtype on `device`, whose values are make()'s, called at the first use of them.

    Raises BlendError where its values would be copied into another tensor: what a host stores in this way would
    outlive the change.
    """

    @staticmethod
    def __new__(cls, make: Callable[[], Tensor], like: Tensor, device: torch.device):
        return without_values(cls, like, device)

    def __init__(self, make: Callable[[], Tensor], like: Tensor, device: torch.device):
        self._make = make
        self._made: Tensor | None = None

    # torch types it as a plain function and not as a method of the class.
    __torch_function__ = plain_attributes_of_a_tensor  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """The operation on the values."""
        if func is torch.ops.aten.copy_.default and isinstance(args[1], Deferred):
            raise BlendError(
                "a LoRA's weight was about to be stored in the model, where it would stay. Another node or a newer "
                "ComfyUI moves weights while the network runs: report it, with the names of the nodes in the graph."
            )
        args, kwargs = tree_map_only(Deferred, Deferred.values, (args, kwargs or {}))
        return func(*args, **kwargs)

    def values(self) -> Tensor:
        """The parameter as the variant has it."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def data_ptr(self) -> int:
        """Where the values lie: kernels that pass by torch's dispatcher (Triton's) ask for it."""
        return self.values().data_ptr()

    def __repr__(self) -> str:
        return f"Deferred({tuple(self.shape)}, {self.dtype}, {self.device})"
