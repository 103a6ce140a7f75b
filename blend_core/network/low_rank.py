"""The additions of plain LoRAs to one module's output, for all variants that have one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Factors, Target
from .add import add_convolution, add_linear, add_linear_by_row, add_made, convolved, folded, is_fresh, weighted
from .selection import Selection

MOST_COLUMNS = 128
"""Columns of all variants' factors up to which rows of different variants meet all of them, masked: a tile of a matrix
unit is no narrower, and it saves a copy of factors per row. Above, every row gets its own."""


KERNEL_RANK, KERNEL_ELEMENTS = 32, 2**23
"""The highest rank, and the most elements of a layer's input, up to which kernel.py was measured to be the faster way
(docs/costs.md)."""


def kernel_takes(x: Tensor, rank: int) -> bool:
    """Whether kernel.py can take this input, and is the faster way."""
    plain = type(x) is Tensor and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and x.is_contiguous()
    small = rank <= KERNEL_RANK and x.numel() <= KERNEL_ELEMENTS
    return plain and small and not torch.compiler.is_compiling() and _kernel() is not None


@functools.cache
def _kernel() -> ModuleType | None:
    """None without Triton, which PyTorch does not bring on Windows."""
    try:
        return importlib.import_module(".kernel", __package__)
    except ImportError:
        return None


class JointProjection(Protocol):
    """What projects one input for several layers at once; see shared_inputs.py."""

    def hidden(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        """The member's hidden vectors of x."""
        ...

    def addition(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor | None:
        """What the member's columns add for x, (tokens, out), where one product makes it for several members."""
        ...

    def release(self) -> None:
        """Let go of what a run made."""
        ...

    def part(self) -> None:
        """The same before a member's `down` is replaced."""
        ...


class LowRank(nn.Module):
    """Variant v adds scale_v * up_v (down_v x).

    down: (variants * rank, in, ...), up: (out, variants * rank), next to each other and padded to one rank. Scales stay
    apart from the factors: multiplied into `up`, one below 1 could push float16 numbers into the subnormal range, or
    would make them float32, twice as large.
    """

    down: Tensor
    up: Tensor

    def __init__(self, pieces: Mapping[int, Sequence[tuple[Target, Factors]]]):
        super().__init__()
        self.variants = tuple(pieces)
        self.pieces = tuple(pieces.values())  # as they were read, for another dtype than the one that is kept
        fused = [_fused(of_variant) for of_variant in self.pieces]
        self.ranks = [len(scales) for _, _, scales in fused]
        self.rank = max(self.ranks)
        self._scales = torch.cat([_padded(torch.tensor(s, dtype=torch.float64), 0, self.rank) for *_, s in fused])
        self.alphas = [scales[0] if len(set(scales)) == 1 else None for *_, scales in fused]  # one for all columns
        self.alpha = self.alphas[0] if len(set(self.alphas)) == 1 else None  # one for all variants
        down, up = self._stacked(fused)
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self.shared: JointProjection | None = None
        self.row_weights: Tensor | None = None  # (rows, columns) of the pass, for a compiled network
        self._placed: _Placed | None = None
        self.folded = Folded()

    def _stacked(self, fused) -> tuple[Tensor, Tensor]:
        down = torch.cat([_padded(down, 0, self.rank) for down, _, _ in fused])
        return down, torch.cat([_padded(up, 1, self.rank) for _, up, _ in fused], dim=1)

    @property
    def columns(self) -> int:
        """Columns of all variants."""
        return len(self.variants) * self.rank

    def columns_of(self, selection: Selection) -> slice:
        """Those that a pass computes with: of the one variant of all rows, or all."""
        if selection.only is None:
            return slice(0, self.columns)
        place = self.variants.index(selection.only)
        return slice(place * self.rank, place * self.rank + self.ranks[place])

    def keep_as(self, dtype: torch.dtype) -> None:
        """Keep the factors in the dtype of the computation alone, where they are."""
        if self.down.dtype != dtype:
            device = self.down.device
            stacked = self._stacked([_fused(of_variant) for of_variant in self.pieces])
            self._part()
            self.down, self.up = (factor.to(device, dtype) for factor in stacked)

    def release(self) -> None:
        """Let go of copies in the dtype of a computation, and of what was made of an input."""
        self.forget_place()
        if self.shared is not None:
            self.shared.release()

    def forget_place(self) -> None:
        """Let go of the copies alone."""
        self._placed = None
        self.folded.forget()

    def _part(self) -> None:
        """Before the factors are replaced: no copy of the old ones is kept."""
        self.forget_place()
        if self.shared is not None:
            self.shared.part()

    def _apply(self, fn, recurse=True):
        self._part()  # moved or cast by the host
        return super()._apply(fn, recurse)

    def add(self, out: Tensor, x: Tensor, selection: Selection, module: nn.Module) -> Tensor:
        """`out`, the module's output for x, with every row's addition."""
        placed = self.placed(x)
        if (only := selection.only) is not None and only not in placed.of:
            return out
        alpha = self.alpha_of(selection)
        if alpha is not None and (shared := self._sharing) is not None:
            made = shared.addition(self, x, selection)
            if made is not None:
                return add_made(out, x, made, alpha)
        if self.takes_kernel(x, selection) and type(out) is Tensor and is_fresh(out, x):
            return self._add_at_once(_kernel(), out, x, selection, placed)
        mixed = only is None and selection.mixture is None
        if mixed and self.columns > MOST_COLUMNS and placed.down.dim() == 2:
            return self._add_by_row(out, x, selection, placed)
        up = placed.up if only is None else placed.of[only][1]
        add = add_linear if placed.down.dim() == 2 else add_convolution
        return add(out, x, self._hidden(x, selection, placed, module), up, 1.0 if alpha is None else alpha)

    def takes_kernel(self, x: Tensor, selection: Selection) -> bool:
        """Whether both products are one launch for this input."""
        rank = self.rank if selection.mixture is None else self.columns
        return self.down.dim() == 2 and kernel_takes(x, rank)

    @property
    def _sharing(self) -> JointProjection | None:
        return None if torch.compiler.is_compiling() else self.shared  # a compiler joins products by itself

    def alpha_of(self, selection: Selection) -> float | None:
        """The one number that all columns of a pass are multiplied with; None: theirs are in their weights."""
        if selection.only is not None:
            return self.alphas[self.variants.index(selection.only)]
        return selection.size if self.alpha is None else self.alpha * selection.size

    def weights(self, selection: Selection, x: Tensor) -> Tensor:
        """(rows, columns): 0 in the columns of other variants than a row's own, and the scales that `alpha` is not."""
        return selection.mask(self, None if self.alpha is not None else self.placed(x).scales, x)

    def add_compiled(
        self, out: Tensor, x: Tensor, selection: Selection, module: nn.Module, weights: Tensor
    ) -> Tensor:
        """The same by one graph, whichever variants the rows have. weights: `row_weights`, which alone differ."""
        down, up = self.down.to(x), self.up.to(x)
        if x.shape[0] != weights.shape[0]:
            weights = weights.repeat_interleave(selection.times(x), 0)
        if down.dim() > 2:
            return add_convolution(out, x, weighted(convolved(x, down, module), weights.to(x), 1), up, 1.0)
        return add_linear(out, x, weighted(F.linear(x, down), weights.to(x), -1), up, 1.0)

    def weigh(self, selection: Selection) -> None:
        """Set `row_weights` for the rows of a pass."""
        key = torch.empty(len(selection.variants), 1, 1, dtype=torch.float32, device=self.down.device)
        self.row_weights = selection.mask(self, self._scales.float().to(key.device) * selection.size, key)

    def _add_at_once(self, kernel, out: Tensor, x: Tensor, selection: Selection, placed: _Placed) -> Tensor:
        """Both products in one launch."""
        if selection.mixture is not None:  # one addition of all columns
            weights, alpha = self.weights(selection, x)[0], self.alpha_of(selection)
            return kernel.add(out, x, placed.down, placed.up, self.columns, weights, alpha, 0)
        if selection.only is not None:
            place, places = self.variants.index(selection.only), None
            alpha = self.alphas[place]
        else:
            place, places, alpha = 0, selection.places(self.variants, x), self.alpha
        scales = placed.scales if alpha is None else None
        alpha = 1.0 if alpha is None else alpha
        return kernel.add(out, x, placed.down, placed.up, self.rank, scales, alpha, place, places)

    def _hidden(self, x: Tensor, selection: Selection, placed: _Placed, module: nn.Module) -> Tensor:
        """weights * down x, from the product that several layers share where they do."""
        down, weights = placed.down, None
        if selection.only is not None:
            down, _, weights = placed.of[selection.only]
        if (shared := self._sharing) is not None:
            hidden = shared.hidden(self, x, selection)
        else:
            if selection.mixture is not None:
                down = self.folded.of(selection, down, lambda: self.weights(selection, x)[0])
            elif selection.only is None:
                weights = self.weights(selection, x)
            hidden = F.linear(x, down) if down.dim() == 2 else convolved(x, down, module)
        return hidden if weights is None else weighted(hidden, weights, -1 if down.dim() == 2 else 1)

    def _add_by_row(self, out: Tensor, x: Tensor, selection: Selection, placed: _Placed) -> Tensor:
        places = selection.places(self.variants, x)
        used, shape = places.clamp(min=0), (len(self.variants), self.rank)
        weights = placed.scales.view(shape)[used] * (places >= 0)[:, None]
        down, up = placed.down.unflatten(0, shape)[used], placed.up.unflatten(1, shape).transpose(0, 1)[used]
        return add_linear_by_row(out, x, down, up, weights)

    def difference(self, variant: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """What the variant adds to the module's weight, in float32 at least."""
        i = self.variants.index(variant)
        columns = slice(i * self.rank, i * self.rank + self.ranks[i])
        down, up = (precise(factor.to(device)) for factor in (self.down[columns].flatten(1), self.up[:, columns]))
        return ((up * self._scales[columns].to(up.dtype).to(device)) @ down).reshape(shape)

    def placed(self, x: Tensor) -> _Placed:
        """The factors on the device and in the dtype of the computation; weights may be stored in fp8 or fewer bits."""
        placed = self._placed
        if placed is None or placed.down.device != x.device or placed.down.dtype != x.dtype:
            placed = self._placed = _Placed.of_module(self, x)
        return placed


class Folded:
    """Factors `down` that are multiplied with a mixture's weights, kept while it is the same one.

    `Selection.size` keeps the largest weight at 1: what a small one loses in half precision is small beside that.
    """

    def __init__(self):
        self._kept: tuple[Selection, Tensor, Tensor] | None = None

    def of(self, selection: Selection, down: Tensor, weights: Callable[[], Tensor]) -> Tensor:
        """down * weights(), (columns, in, ...)."""
        if self._kept is None or self._kept[0] is not selection or self._kept[1] is not down:
            self._kept = selection, down, folded(down, weights())
        return self._kept[2]

    def forget(self) -> None:
        """Let go of them."""
        self._kept = None


@dataclass(frozen=True)
class _Placed:
    """Factors where they are used. of: (down, up, weights) of each variant, for add.py's functions."""

    down: Tensor
    up: Tensor
    scales: Tensor
    of: Mapping[int, tuple[Tensor, Tensor, Tensor | None]]

    @classmethod
    def of_module(cls, module: LowRank, x: Tensor) -> _Placed:
        down, up = module.down.to(x.device, x.dtype), module.up.to(x.device, x.dtype)
        scales, of = module._scales.to(x.dtype).to(x.device), {}  # not every device has float64
        for i, (variant, rank, alpha) in enumerate(zip(module.variants, module.ranks, module.alphas, strict=True)):
            columns = slice(i * module.rank, i * module.rank + rank)
            weights = scales[columns] if alpha is None else None
            of[variant] = down[columns], up[:, columns], weights
        return cls(down, up, scales, of)


def precise(tensor: Tensor) -> Tensor:
    """In float32 at least: there is no arithmetic in eight bits, and products of small float16 numbers vanish."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _fused(pieces: Sequence[tuple[Target, Factors]]) -> tuple[Tensor, Tensor, list[float]]:
    """One (down, up, scale per column) for all pieces on a module, a slice's `up` zero outside its rows.

    Three adapters on q, k and v of one fused weight become one of three times the rank, exactly.
    """
    downs, ups, scales = [], [], []
    for target, factors in pieces:
        up = factors.up
        if target.rows is not None:
            offset, length = target.rows
            up = F.pad(up, (0, 0, offset, target.shape[0] - offset - length))
        downs.append(factors.down)
        ups.append(up)
        scales += [float(factors.scale)] * factors.rank
    dtype = downs[0].dtype
    return torch.cat([down.to(dtype) for down in downs]), torch.cat([up.to(dtype) for up in ups], dim=1), scales


def _padded(factor: Tensor, dim: int, rank: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if missing == 0:
        return factor
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim)
