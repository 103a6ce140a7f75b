"""The products of a low-rank addition: out + alpha * up (weights * hidden), hidden = down x.

    linear       x (rows, ..., in), out (rows, ..., out), hidden (rows, ..., columns)
    convolution  x (rows, in, ...), out (rows, out, ...), hidden (rows, columns, ...)

columns: of all variants that the product holds. An output that nobody else has is written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .private import padding_of

# By the dimensions of the input: sound, images, videos.
CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def weighted(hidden: Tensor, weights: Tensor, axis: int) -> Tensor:
    """hidden * weights; weights: (rows, columns) or (columns,).  axis: where hidden has its columns, 1 or -1."""
    between = [1] * (hidden.dim() - 2)
    columns = weights.shape[-1]
    return hidden * (weights.view(-1, columns, *between) if axis == 1 else weights.view(-1, *between, columns))


def folded(down: Tensor, weights: Tensor) -> Tensor:
    """The factors (columns, in, ...) of hidden * weights; weights: (columns,)."""
    return down * weights.view(-1, *[1] * (down.dim() - 1))


def add_linear(out: Tensor, x: Tensor, hidden: Tensor, up: Tensor, alpha: float) -> Tensor:
    """out + alpha * hidden up', (rows, ..., out); up: (out, columns)."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    if is_fresh(out, x):
        out.view(-1, out.shape[-1]).addmm_(flat, up.t(), alpha=alpha)
        return out
    return torch.addmm(out.reshape(-1, out.shape[-1]), flat, up.t(), alpha=alpha).view(out.shape)


def add_made(out: Tensor, x: Tensor, made: Tensor, alpha: float) -> Tensor:
    """out + alpha * made, (rows, ..., out); made: (tokens of all rows, out)."""
    made = made.view(out.shape)
    return out.add_(made, alpha=alpha) if is_fresh(out, x) else torch.add(out, made, alpha=alpha)


def add_linear_by_row(out: Tensor, x: Tensor, down: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """The same with a row's own factors: down (rows, rank, in), up (rows, out, rank), weights (rows, rank).

    Each row meets its own variant's columns alone, at the price of a copy of factors per row.
    """
    hidden = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), down.transpose(1, 2)) * weights[:, None]
    rows = out.reshape(out.shape[0], -1, out.shape[-1])
    return torch.baddbmm(rows, hidden, up.transpose(1, 2)).view(out.shape)


def add_convolution(out: Tensor, x: Tensor, hidden: Tensor, up: Tensor, alpha: float) -> Tensor:
    """out + alpha * up hidden, (rows, out, ...); up: (out, columns)."""
    delta = CONVOLUTIONS[hidden.dim()](hidden, up.view(*up.shape, *[1] * (hidden.dim() - 2)))
    return out.add_(delta, alpha=alpha) if is_fresh(out, x) else torch.add(out, delta, alpha=alpha)


def convolved(x: Tensor, weight: Tensor, module: nn.Module, groups: int = 1) -> Tensor:
    """x under a convolution with the module's geometry and another weight, without a bias."""
    layer = cast(nn.Conv2d, module)  # or of another number of axes: bank.py takes no other kind for a convolution
    padding = layer.padding
    if layer.padding_mode != "zeros":  # seamless tiling sets "circular" on a model's convolutions
        x, padding = F.pad(x, padding_of(layer), mode=layer.padding_mode), 0
    return CONVOLUTIONS[x.dim()](x, weight, None, layer.stride, padding, layer.dilation, groups)


def is_fresh(out: Tensor, x: Tensor) -> bool:
    """Whether `out` is a fresh tensor that may be written to: without it, one copy more."""
    return out.is_contiguous() and not out.requires_grad and out is not x
