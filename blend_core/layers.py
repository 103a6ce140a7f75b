"""Layers whose weight a file changes otherwise than by a pair of factors, one variant's rows after another.

    y' = gain o (W x + delta x) + b + bias         for magnitudes of rows
    y' = (W + delta) (gain o x) + b + bias         for magnitudes of columns

The slower path: a delta is built when the layer runs, applied to the rows of its variant, and dropped. A LoKr of a
linear layer needs no building.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Change, Delta, Factors, Target
from .errors import BlendError

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the dimensions of the input: sound, images, videos
Gains = Sequence[Sequence[Tensor | None]]


class ChangedLayer(nn.Module):
    """The changes that some variants make to one module: {variant: [(Target, change)]}."""

    def __init__(self, changes: Mapping[int, Sequence[tuple[Target, Factors | Change]]]):
        super().__init__()
        self.variants = tuple(changes)
        self.pieces = nn.ModuleList(
            nn.ModuleList(_Piece(target, _as_change(change)) for target, change in of_variant)
            for of_variant in changes.values()
        )

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest delta that a pass builds here, in float32."""
        return max(piece.transient_bytes for of_variant in self.pieces for piece in of_variant)

    def gains(self, module: nn.Module, patched: bool) -> Gains:
        """DoRA's gains on this module's weight as it is now, per variant and piece; None where there is none.

        patched: whether other patches reach the weight only when the module runs.
        """
        return [[piece.gain(module, patched) for piece in of_variant] for of_variant in self.pieces]

    def add(self, out: Tensor, x: Tensor, site, again: Callable[[Tensor], Tensor]) -> Tensor:
        """`out`, the module's output for x, with the rows of each variant changed. again(x): the module's output."""
        for variant, pieces, gains in zip(self.variants, self.pieces, site.gains, strict=True):
            rows = site.selection.rows_of(variant, x)
            if rows is None:
                out = _changed(out, x, pieces, gains, site.module, again)
            elif len(rows):
                out = out.index_copy(0, rows, _changed(out[rows], x[rows], pieces, gains, site.module, again))
        return out


def _changed(out: Tensor, x: Tensor, pieces, gains, module: nn.Module, again) -> Tensor:
    for piece, gain in zip(pieces, gains, strict=True):
        out = piece(out, x, gain, module, again)
    return out


def _as_change(change: Factors | Change) -> Change:
    return change if isinstance(change, Change) else Change(change)


class _Piece(nn.Module):
    """One change of a module's weight, or of some of its output rows."""

    def __init__(self, target: Target, change: Change):
        super().__init__()
        self.target, self.delta, self.magnitude = target, change.delta, change.magnitude
        self.shape = (target.height, *target.shape[1:])
        tensors = {} if change.delta is None else change.delta.tensors
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", change.bias)

    @property
    def transient_bytes(self) -> int:
        """Bytes of its delta when it is built, in float32; factors are never multiplied out."""
        factored = self.delta is None or isinstance(self.delta, Factors) or self.delta.factored
        return 0 if factored else 4 * torch.Size(self.shape).numel()

    def gain(self, module: nn.Module, patched: bool) -> Tensor | None:
        """What DoRA multiplies rows or columns of the changed weight by, (out,) or (in,); None without DoRA."""
        if self.magnitude is None:
            return None
        first, last = self.target.span
        weight = _weight_of(module, patched, self.target, next(self.buffers()).device)[first:last]
        return self.magnitude.gain(weight + self._weight(weight))

    def forward(self, out: Tensor, x: Tensor, gain: Tensor | None, module: nn.Module, again) -> Tensor:
        """`out` (rows, ...) with this change, for the module's input x of the same rows."""
        axis = 1 if isinstance(module, nn.modules.conv._ConvNd | nn.GroupNorm) else -1
        first, last = self.target.span
        gain = None if gain is None else _along(gain.to(out), axis, out.dim())
        part = out.narrow(axis, first, last - first)
        if gain is not None and not self.magnitude.of_rows:
            x = x * gain
            part = again(x).narrow(axis, first, last - first)
        if self.delta is not None:
            part = part + self._applied(x, module, axis)
        if gain is not None and self.magnitude.of_rows:
            own = getattr(module, "bias", None)
            own = 0 if own is None else _along(own[first:last].to(out), axis, out.dim())
            part = (part - own) * gain + own
        if self.bias is not None:
            part = part + _along(self.bias.to(out), axis, out.dim())
        if last - first == out.shape[axis]:
            return part
        out = out.clone()
        out.narrow(axis, first, last - first).copy_(part)
        return out

    def _applied(self, x: Tensor, module: nn.Module, axis: int) -> Tensor:
        """The delta's output for x."""
        if len(self.shape) == 1:
            return _normalised(x, module) * _along(self._weight(x), axis, x.dim())
        if isinstance(self.delta, Factors) and getattr(module, "groups", 1) == 1:
            return self._low_rank(x, module)
        if axis == -1 and isinstance(self.delta, Delta) and self.delta.factored:
            return self.delta.applied(x, self._tensors(x))
        return _layer(x, self._weight(x), module)

    def _low_rank(self, x: Tensor, module: nn.Module) -> Tensor:
        hidden = _layer(x, self.down.to(x), module) * self.delta.scale
        if self.down.dim() == 2:
            return F.linear(hidden, self.up.to(x))
        return CONVOLUTIONS[x.dim()](hidden, self.up.to(x).view(*self.up.shape, *[1] * (x.dim() - 2)))

    def _tensors(self, x: Tensor) -> dict[str, Tensor]:
        """What the delta is made of, in float32: products of small float16 numbers would vanish."""
        return {name: _precise(getattr(self, name).to(x.device)) for name in self.names}

    def _weight(self, x: Tensor) -> Tensor:
        """The delta, built for x's device and dtype."""
        return self.delta.built(self.shape, self._tensors(x)).to(x.dtype)


def _weight_of(module: nn.Module, patched: bool, target: Target, device: torch.device) -> Tensor:
    """The module's weight as numbers, (out, in, ...) in float32 at least, whatever it is stored as.

    A linear layer whose weight is packed, or patched only when it is used, tells it by its output for unit vectors on
    `device`, where it computes.
    """
    weight = module.weight
    as_stored = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
    if isinstance(module, nn.modules.conv._ConvNd):
        return _precise(weight if as_stored else weight.dequantize())
    if as_stored and not patched:
        return _precise(weight)
    width = target.shape[1]
    zero, *columns = (
        module(x) for x in (torch.zeros(1, width, device=device), *torch.eye(width, device=device).split(256))
    )
    return (torch.cat(columns) - zero).t().contiguous()


def _precise(tensor: Tensor) -> Tensor:
    """In float32 at least: there is no arithmetic in eight bits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    """(n,) values along one axis of a tensor of `dims` axes."""
    return values if axis == -1 else values.view(-1, *[1] * (dims - 2))


def _layer(x: Tensor, weight: Tensor, module: nn.Module) -> Tensor:
    """The module's own kind of layer with another weight and no bias."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return convolved(x, weight, module, module.groups)


def convolved(x: Tensor, weight: Tensor, module: nn.Module, groups: int = 1) -> Tensor:
    """x under a convolution with the module's geometry."""
    padding = module.padding
    if module.padding_mode != "zeros":  # seamless tiling sets "circular" on a model's convolutions
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    return CONVOLUTIONS[x.dim()](x, weight, None, module.stride, padding, module.dilation, groups)


def _normalised(x: Tensor, module: nn.Module) -> Tensor:
    """What a norm multiplies its weight by."""
    match module:
        case nn.LayerNorm():
            return F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        case nn.GroupNorm():
            return F.group_norm(x, module.num_groups, None, None, module.eps)
        case nn.RMSNorm():
            return F.rms_norm(x, module.normalized_shape, None, module.eps)
    raise BlendError(
        f"a {type(module).__name__} came for the difference of a norm, expected LayerNorm, GroupNorm or RMSNorm. Merge "
        "the file into a model, or leave that layer out of it."
    )
