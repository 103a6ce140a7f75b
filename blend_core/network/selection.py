"""Which row of a network's call is which variant, and the tensors that layers derive from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import BlendError

Mixtures = Mapping[int, Mapping[int, float]]
"""Variants that are several others at once: of each the coefficients, by variant."""


class Columns(Protocol):
    """A layer whose factors have `rank` columns for each of its variants, next to each other."""

    variants: tuple[int, ...]
    rank: int


Layer = TypeVar("Layer", bound=Columns)


class Selection:
    """Row i of a call is variant variants[i]. Rows may stand several times each: frames of a video in the batch.

    mixtures: variants that are several at once, each at its coefficient.  only: the variant, where all rows have the
    same one and it is no mixture; else None.  mixture: the same of a mixture, (variant: coefficient).  size: of its
    largest coefficient, 1 without a mixture.  members: all variants in it, those of mixtures one by one.
    """

    def __init__(self, variants: tuple[int, ...], mixtures: Mixtures | None = None):
        self.variants, self._mixtures = variants, mixtures or {}
        same = variants[0] if len(set(variants)) == 1 else None
        self.mixture = None if same is None else self._mixtures.get(same)
        self.only = same if self.mixture is None else None
        self.size = 1.0 if self.mixture is None else max(map(abs, self.mixture.values()))
        self.members = frozenset(v for variant in set(variants) for v in self._mixtures.get(variant, (variant,)))
        self._tensors: dict[tuple, Tensor] = {}

    def mask(self, layer: Columns, scales: Tensor | None, x: Tensor) -> Tensor:
        """(rows, columns) of x's dtype: 1 in the columns of a row's own variant, else 0; times `scales` (columns,).

        A row that is a mixture has its coefficients in the place of 1; where all are the same mixture, over `size`.

        Raises BlendError where it is unknown which row is whose, see `times`; rows that are all one mixture are known.
        """
        variants, times = (self.variants, self.times(x)) if self.mixture is None else (self.variants[:1], x.shape[0])
        key = ("mask", layer.variants, layer.rank, x.shape[0], x.device, x.dtype)
        if key not in self._tensors:
            rows = [[self._share(variant, other) for other in layer.variants] for variant in variants]
            of_row = torch.tensor(rows, dtype=torch.float64)
            whole = of_row.repeat_interleave(times, 0).repeat_interleave(layer.rank, 1)
            self._tensors[key] = whole.to(x.dtype).to(x.device)
        if scales is None:
            return self._tensors[key]
        scaled = (*key, layer)
        if scaled not in self._tensors:
            self._tensors[scaled] = self._tensors[key] * scales
        return self._tensors[scaled]

    def _share(self, variant: int, other: int) -> float:
        """How much of `other` a row of `variant` has."""
        return self._mixtures.get(variant, {variant: 1.0}).get(other, 0.0) / self.size

    def joined(self, layers: Sequence[Layer], make: Callable[[Layer], Tensor], x: Tensor) -> Tensor:
        """make(layer) of several layers, (rows, columns) each, next to each other."""
        key = ("joined", *layers, x.shape[0], x.device, x.dtype)
        if key not in self._tensors:
            self._tensors[key] = torch.cat([make(layer) for layer in layers], 1)
        return self._tensors[key]

    def places(self, covered: tuple[int, ...], x: Tensor) -> Tensor:
        """Per row of x the place of its variant in `covered`, (rows,) long; -1 where it is not covered.

        Raises BlendError as `mask` does.
        """
        times, key = self.times(x), ("places", covered, x.shape[0], x.device)
        if key not in self._tensors:
            place = {variant: i for i, variant in enumerate(covered)}
            places = torch.tensor([place.get(variant, -1) for variant in self.variants])
            self._tensors[key] = places.repeat_interleave(times).to(x.device)
        return self._tensors[key]

    def rows_of(self, variant: int, x: Tensor) -> Tensor | None:
        """The rows of x that are this variant's, (n,) long, maybe none; None where all are. Raises as `mask` does."""
        if self.only is not None:
            return None if self.only == variant else torch.empty(0, dtype=torch.long)
        times, key = self.times(x), ("rows", variant, x.shape[0], x.device)
        if key not in self._tensors:
            rows = [i * times + j for i, other in enumerate(self.variants) if other == variant for j in range(times)]
            self._tensors[key] = torch.tensor(rows, dtype=torch.long).to(x.device)
        return self._tensors[key]

    def times(self, x: Tensor) -> int:
        """How often every row stands in x.

        Raises BlendError where that is unknown: no multiple, or tokens in one list, which a network may have sorted (to
        their experts) so that a fitting count would be chance.
        """
        rows = x.shape[0]
        times, rest = divmod(rows, len(self.variants))
        if rest or times == 0 or (times != 1 and x.dim() == 2):
            raise BlendError(
                f"a layer received {rows} rows where the blend passed {len(self.variants)}, so it is unknown which row "
                "is whose: this network mixes images within a batch. Sample one image at a time, with the sequential "
                "execution."
            )
        return times
