"""Changes of a module's weight that are more than a pair of factors, one variant's rows after another.

    y' = gain o (W x + delta x) + b + bias         for magnitudes of rows
    y' = (W + delta) (gain o x) + b + bias         for magnitudes of columns

The slower path: a delta is built when the layer runs, applied to the rows of its variant, and dropped. A LoKr of a
linear layer needs no building.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Change, Delta, Factors, Target
from .add import CONVOLUTIONS, convolved
from .low_rank import precise
from .private import CONVOLUTION
from .selection import Selection

Gains = Mapping[int, Sequence[Tensor | None]]
"""DoRA's gains of each variant, one per piece; None where a piece has no magnitudes."""


class Changed(nn.Module):
    """The changes that some variants make to one parameter of a module: {variant: [(Target, change)]}."""

    def __init__(self, changes: Mapping[int, Sequence[tuple[Target, Change]]]):
        super().__init__()
        self.variants = tuple(changes)
        pieces = [[_Piece(target, change) for target, change in part] for part in changes.values()]
        self.pieces = cast(Sequence[Sequence[_Piece]], nn.ModuleList(map(nn.ModuleList, pieces)))

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest delta that a pass builds here, in float32."""
        return max(piece.transient_bytes for of_variant in self.pieces for piece in of_variant)

    @property
    def needs_weight(self) -> bool:
        """Whether a gain depends on the module's own weight."""
        return any(piece.magnitude is not None for of_variant in self.pieces for piece in of_variant)

    def of(self, variant: int) -> Sequence[_Piece]:
        """The pieces of a variant."""
        return self.pieces[self.variants.index(variant)]

    def gains(self, weight: Tensor | None) -> Gains:
        """The gains on this weight (out, in, ...), as it is now; see `needs_weight`."""
        return {variant: [piece.gain(weight) for piece in self.of(variant)] for variant in self.variants}

    def add(
        self,
        out: Tensor,
        x: Tensor,
        selection: Selection,
        module: nn.Module,
        gains: Gains,
        again: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """`out`, the module's output for x, with the rows of each variant changed. again(x): the module's output."""
        if selection.mixture is not None:
            changes = [
                coefficient * (self._changed(variant, out, x, module, gains, again) - out)
                for variant, coefficient in selection.mixture.items()
                if variant in self.variants
            ]
            return sum(changes, out)
        for variant in self.variants:
            rows = selection.rows_of(variant, x)
            if rows is None:
                out = self._changed(variant, out, x, module, gains, again)
            elif len(rows):
                part = self._changed(variant, out[rows], x[rows], module, gains, again)
                out = out.index_copy(0, rows, part)
        return out

    def _changed(self, variant: int, out: Tensor, x: Tensor, module: nn.Module, gains: Gains, again) -> Tensor:
        for piece, gain in zip(self.of(variant), gains[variant], strict=True):
            out = piece(out, x, gain, module, again)
        return out

    def weight(self, variant: int, weight: Tensor, gains: Gains) -> Tensor:
        """The parameter as the variant has it, in float32; weight: as the base has it."""
        for piece, gain in zip(self.of(variant), gains[variant], strict=True):
            weight = piece.changed_weight(weight, gain)
        return weight

    def bias(self, variant: int, bias: Tensor) -> Tensor:
        """The same of the bias."""
        for piece in self.of(variant):
            bias = piece.changed_bias(bias)
        return bias


class _Piece(nn.Module):
    """One change of a module's weight, or of some of its output rows."""

    bias: Tensor | None
    down: Tensor
    up: Tensor

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
        return 0 if self.delta is None or self.delta.factored else 4 * torch.Size(self.shape).numel()

    def gain(self, weight: Tensor | None) -> Tensor | None:
        """What DoRA multiplies rows or columns of the changed weight by, (out,) or (in,); None without DoRA."""
        if self.magnitude is None or self.delta is None or weight is None:
            return None
        first, last = self.target.span
        return self.magnitude.gain(weight[first:last] + self._weight(self.delta, weight))

    def changed_weight(self, weight: Tensor, gain: Tensor | None) -> Tensor:
        """`weight` (out, in, ...) with this change in its rows; of a single number, (), the one."""
        if weight.dim() == 0:
            return self.changed_weight(weight.view(1), gain).view(())
        first, last = self.target.span
        rows = weight[first:last]
        if self.delta is not None:
            rows = rows + self._weight(self.delta, rows)
        if gain is not None and self.magnitude is not None:
            along = (-1, *[1] * (rows.dim() - 1)) if self.magnitude.of_rows else (1, -1, *[1] * (rows.dim() - 2))
            rows = rows * gain.to(rows).view(along)
        return rows if len(rows) == len(weight) else torch.cat([weight[:first], rows, weight[last:]])

    def changed_bias(self, bias: Tensor) -> Tensor:
        """`bias` (out,) with this change in its rows."""
        if self.bias is None:
            return bias
        first, last = self.target.span
        return torch.cat([bias[:first], bias[first:last] + self.bias.to(bias), bias[last:]])

    def forward(self, out: Tensor, x: Tensor, gain: Tensor | None, module: nn.Module, again) -> Tensor:
        """`out` (rows, ...) with this change, for the module's input x of the same rows."""
        axis = 1 if isinstance(module, CONVOLUTION | nn.GroupNorm) else -1
        first, last = self.target.span
        gain = None if gain is None else _along(gain.to(out), axis, out.dim())
        part = out.narrow(axis, first, last - first)
        of_rows = self.magnitude is not None and self.magnitude.of_rows
        if gain is not None and not of_rows:
            x = x * gain
            part = again(x).narrow(axis, first, last - first)
        if self.delta is not None:
            part = part + self._applied(self.delta, x, module, axis)
        if gain is not None and of_rows:
            bias = getattr(module, "bias", None)
            bias = 0 if bias is None else _along(bias[first:last].to(out), axis, out.dim())
            part = (part - bias) * gain + bias
        if self.bias is not None:
            part = part + _along(self.bias.to(out), axis, out.dim())
        if last - first == out.shape[axis]:
            return part
        out = out.clone()
        out.narrow(axis, first, last - first).copy_(part)
        return out

    def _applied(self, delta: Factors | Delta, x: Tensor, module: nn.Module, axis: int) -> Tensor:
        """The delta's output for x."""
        if len(self.shape) == 1:
            return _normalised(x, module) * _along(self._weight(delta, x), axis, x.dim())
        if isinstance(delta, Factors):
            return self._low_rank(delta.scale, x, module)
        if axis == -1 and delta.factored:
            return delta.applied(x, self._tensors(x))
        return _layer(x, self._weight(delta, x), module)

    def _low_rank(self, scale: float, x: Tensor, module: nn.Module) -> Tensor:
        hidden = _layer(x, self.down.to(x), module) * scale
        if self.down.dim() == 2:
            return F.linear(hidden, self.up.to(x))
        return CONVOLUTIONS[x.dim()](hidden, self.up.to(x).view(*self.up.shape, *[1] * (x.dim() - 2)))

    def _tensors(self, like: Tensor) -> dict[str, Tensor]:
        """What the delta is made of, in float32: products of small float16 numbers would vanish."""
        return {name: precise(getattr(self, name).to(like.device)) for name in self.names}

    def _weight(self, delta: Factors | Delta, like: Tensor) -> Tensor:
        """The delta, built for a tensor's device and dtype."""
        return delta.built(self.shape, self._tensors(like)).to(like.dtype)


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    """(n,) values along one axis of a tensor of `dims` axes."""
    return values if axis == -1 else values.view(-1, *[1] * (dims - 2))


def _layer(x: Tensor, weight: Tensor, module: nn.Module) -> Tensor:
    """The module's own kind of layer with another weight and no bias."""
    return F.linear(x, weight) if weight.dim() == 2 else convolved(x, weight, module)


def _normalised(x: Tensor, module: nn.Module) -> Tensor:
    """What a norm multiplies its weight by."""
    match module:
        case nn.LayerNorm():
            return F.layer_norm(x, list(module.normalized_shape), None, None, module.eps)
        case nn.GroupNorm():
            return F.group_norm(x, module.num_groups, None, None, module.eps)
    norm = cast(nn.RMSNorm, module)  # the last kind that bank.py knows
    return F.rms_norm(x, list(norm.normalized_shape), None, norm.eps)
