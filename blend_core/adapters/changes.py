"""What a file does to one weight: a pair of factors, or LoHa, LoKr, whole differences, DoRA, biases.

    W' = gain o (W + delta),  b' = b + bias        gain: DoRA's magnitude over the norms of W + delta; 1 without it

Deltas stay as the file holds them and are built when a layer runs, one layer at a time, or need no building: a LoKr of
a megabyte never takes the gigabytes of the weights it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BlendError


@dataclass(frozen=True)
class Factors:
    """One low-rank addition `scale * up @ down` to a weight.

    down: (rank, in) for a linear layer, (rank, in, kh, kw) for a convolution (a Tucker core is already folded in).
    up:   (out, rank).
    Both keep the dtype of the file: very small fp16 factors should be multiplied in fp32.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in[, kh, kw]) of the weight they add to."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What they are made of, by name."""
        return {"down": self.down, "up": self.up}

    @property
    def kind(self) -> str:
        """What it is called, for messages."""
        return "LoRA"

    @property
    def factored(self) -> bool:
        """Whether a layer's output for it needs no building of the whole difference."""
        return True

    def times(self, strength: float) -> Factors:
        """The same addition, `strength` times as large."""
        return replace(self, scale=self.scale * strength)

    def at_rows(self, rows: Tensor) -> Factors:
        """The factors of some output rows."""
        return replace(self, up=self.up[rows])

    def fitted(self, shape: tuple[int, ...]) -> Factors:
        """The same for a weight of this shape, which a 1x1 convolution and a linear layer write in two ways."""
        return replace(self, down=self.down.reshape(self.rank, *shape[1:]))

    def built(self, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
        """The whole difference in a weight's shape. tensors: the factors, where and as it is to be."""
        return (self.scale * tensors["up"] @ tensors["down"].flatten(1)).reshape(shape)


@dataclass(frozen=True)
class Delta:
    """The difference scale * formula(tensors) of a weight, or some rows of it.

    kind: the name of its formula.  shape: (out, in, ...) of what the formula gives; a 1x1 kernel may be missing.
    rows: the output rows that are taken, in order; None for all.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    rank: int | None = None  # of what it is made of
    rows: Tensor | None = None

    def times(self, strength: float) -> Delta:
        """The same difference, `strength` times as large."""
        return replace(self, scale=self.scale * strength)

    def at_rows(self, rows: Tensor) -> Delta:
        """The same for some of its rows."""
        return replace(self, rows=rows)

    def fitted(self, shape: tuple[int, ...]) -> Delta:
        """The same: the difference is built in the weight's shape where it is needed."""
        return self

    def built(self, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
        """The difference in a weight's shape. tensors: its own, where and as the difference is to be."""
        whole = _FORMULAS[self.kind](tensors) * self.scale
        rows = whole if self.rows is None else whole[self.rows.to(whole.device)]
        return rows.reshape(shape)

    @property
    def factored(self) -> bool:
        """Whether `applied` needs no building."""
        return self.kind == "LoKr" and self.rows is None and len(self.shape) == 2

    def applied(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """A linear layer's difference for x (..., in), where it is `factored`: w1 and w2 each on its share of x."""
        first, second = (matrix.to(x.dtype) for matrix in _kronecker(tensors))
        inner = x.unflatten(-1, (first.shape[1], second.shape[1])) @ second.t()
        return (first @ inner).flatten(-2) * self.scale


@dataclass(frozen=True)
class Magnitude:
    """DoRA's learned norms, (out,) of the rows or (in,) of the columns of W + delta."""

    values: Tensor
    of_rows: bool

    def gain(self, changed: Tensor) -> Tensor:
        """What rows or columns of `changed`, W + delta (out, in, ...), are multiplied by to have these norms."""
        norms = changed.flatten(1).norm(dim=1) if self.of_rows else changed.transpose(0, 1).flatten(1).norm(dim=1)
        return self.values.to(norms) / norms.clamp(min=torch.finfo(norms.dtype).tiny)

    def at_rows(self, rows: Tensor) -> Magnitude:
        """Those of some rows."""
        return replace(self, values=self.values[rows]) if self.of_rows else self


@dataclass(frozen=True)
class Change:
    """One file's change of one weight. delta: None where only the bias changes.  bias: (out,), added to the bias."""

    delta: Factors | Delta | None
    magnitude: Magnitude | None = None
    bias: Tensor | None = None

    @property
    def kind(self) -> str:
        """What it is called, for messages."""
        if self.magnitude is not None:
            return "DoRA"
        if self.delta is None:
            return "bias difference"
        return self.delta.kind if self.bias is None or isinstance(self.delta, Delta) else "LoRA with a bias"

    @property
    def factors(self) -> Factors | None:
        """The pair of factors where the change is nothing more, as a plain LoRA's is; None else."""
        if self.magnitude is None and self.bias is None and isinstance(self.delta, Factors):
            return self.delta
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, ...) of the weight it changes; (out,) of a bias."""
        if self.delta is not None:
            return self.delta.shape
        return () if self.bias is None else tuple(self.bias.shape)

    @property
    def rank(self) -> int | None:
        """Its rank, where it has one."""
        return None if self.delta is None else self.delta.rank

    def times(self, strength: float) -> Change:
        """The same with difference and bias `strength` times as large; see Adapter.times for magnitudes."""
        delta = None if self.delta is None else self.delta.times(strength)
        bias = None if self.bias is None else self.bias * strength
        return replace(self, delta=delta, bias=bias)

    def fitted(self, shape: tuple[int, ...]) -> Change:
        """The same for a weight of this shape."""
        return replace(self, delta=self.delta and self.delta.fitted(shape))

    def at_rows(self, rows: Tensor) -> Change:
        """The change of some output rows."""
        return Change(
            self.delta and self.delta.at_rows(rows),
            self.magnitude and self.magnitude.at_rows(rows),
            None if self.bias is None else self.bias[rows],
        )


def loha(tensors: Mapping[str, Tensor]) -> tuple[Delta | Factors, int]:
    """LoHa, (w1_a w1_b) o (w2_a w2_b), of scale 1, and the rank that its alpha is divided by.

    It comes as plain factors where their rank, the product of the two, is small.

    The product of two matrices of rank r and s, entry by entry, is a matrix of rank r s: factors are exact, and run
    as any LoRA does. Raises BlendError for shapes that do not fit one another.
    """
    left, right = (_pair(tensors, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    if left != right:
        raise BlendError(f"the two factors have shapes {left} and {right}, expected the same. Save the file again.")
    a, b, c, d = (tensors[f"hada_w{i}_{part}"] for i in (1, 2) for part in "ab")
    cores = "hada_t1" in tensors or "hada_t2" in tensors
    rank = b.shape[0]
    delta = Delta("LoHa", tensors, 1.0, left, rank)
    product = rank * d.shape[0]
    columns = b[0].numel()
    worth = product <= _HIGHEST_PRODUCT and product * (left[0] + columns) <= _SHARE_OF_DENSE * left[0] * columns
    if cores or not worth:
        return delta, rank
    up = (a[:, :, None].float() * c[:, None, :].float()).flatten(1)
    down = (b[:, None].float() * d[None].float()).flatten(0, 1)
    return Factors(down, up, 1.0), rank


def lokr(tensors: Mapping[str, Tensor]) -> tuple[Delta, int | None]:
    """LoKr, the Kronecker product of w1 and w2, either of which may be a product itself, of scale 1; and its rank.

    The rank is None where both are whole. Raises BlendError for shapes that do not fit one another.
    """
    first, second = (
        tuple(tensors[whole].shape) if whole in tensors else _pair(tensors, f"{whole}_a", f"{whole}_b", core)
        for whole, core in _KRONECKER
    )
    if len(first) != 2 or len(second) < 2:
        raise BlendError(f"lokr_w1 has shape {first} and lokr_w2 {second}, expected matrices. Save the file again.")
    # LyCORIS divides alpha by the one rank that both products share, and by none where there is no product.
    ranks = [tensors[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
    shape = (first[0] * second[0], first[1] * second[1], *second[2:])
    rank = ranks[0] if ranks else None
    return Delta("LoKr", tensors, 1.0, shape, rank), rank


def difference(tensors: Mapping[str, Tensor]) -> Delta:
    """A whole difference of a weight."""
    return Delta("whole difference", tensors, 1.0, tuple(tensors["diff"].shape))


_KRONECKER = (("lokr_w1", ""), ("lokr_w2", "lokr_t2"))  # a LoKr's two matrices, and the core of one's product
_SHARE_OF_DENSE = 0.5  # factors that take more than this share of the whole difference's numbers are not worth it
_HIGHEST_PRODUCT = 1024  # of two ranks; a file's tensors grow by it


def _pair(tensors: Mapping[str, Tensor], a: str, b: str, core: str = "") -> tuple[int, ...]:
    """The shape of a product: (out, rank) by (rank, in), or with a core of shape (rank, rank, kh, kw) between."""
    left, right = tensors[a], tensors[b]
    if core in tensors:
        middle = tensors[core]
        fits = left.dim() == right.dim() == 2 < middle.dim() and middle.numel()
        if fits and middle.shape[:2] == (left.shape[0], right.shape[0]):
            return (left.shape[1], right.shape[1], *middle.shape[2:])
    elif left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] > 0:
        return (left.shape[0], right.shape[1])
    shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in (a, b, core) if name in tensors)
    raise BlendError(f"the shapes {shapes} cannot be multiplied. The file was badly converted: save it again.")


def _product(tensors: Mapping[str, Tensor], a: str, b: str, core: str) -> Tensor:
    if core in tensors:  # a and b then are (rank, out) and (rank, in)
        return torch.einsum("pq...,po,qi->oi...", tensors[core], tensors[a], tensors[b])
    return tensors[a] @ tensors[b]


def _loha(tensors: Mapping[str, Tensor]) -> Tensor:
    return _product(tensors, "hada_w1_a", "hada_w1_b", "hada_t1") * _product(
        tensors, "hada_w2_a", "hada_w2_b", "hada_t2"
    )


def _kronecker(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """w1 and w2 of a LoKr, products multiplied."""
    first, second = (
        tensors[whole] if whole in tensors else _product(tensors, f"{whole}_a", f"{whole}_b", core)
        for whole, core in _KRONECKER
    )
    return first, second


def _lokr(tensors: Mapping[str, Tensor]) -> Tensor:
    first, second = _kronecker(tensors)
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())


_FORMULAS: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "LoHa": _loha,
    "LoKr": _lokr,
    "whole difference": lambda tensors: tensors["diff"],
}
