"""Which layers of a network get one and the same input: q, k and v of an attention, or all that read the prompt."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .low_rank import MOST_COLUMNS, LowRank, SharedInput


@dataclass
class _Seen:
    """An input, and who got it. hidden: what the first one's `down` made of it.  equal: whether it stayed the same."""

    input: weakref.ref
    down: Tensor
    hidden: Tensor
    members: list[LowRank]
    equal: list[Tensor] = field(default_factory=list)


class InputWatch:
    """Looks on while a pass runs; `shared` then groups the layers.

    A network that writes into a tensor between two layers hands both the same object: the first layer's product, made
    again, tells it.
    """

    def __init__(self, layers: Sequence[LowRank]):
        self._layers = [layer for layer in layers if layer.shared is None and layer.columns <= MOST_COLUMNS]
        self._seen: dict[int, _Seen] = {}
        self._ended: list[_Seen] = []
        for layer in self._layers:
            layer.watch = self

    def see(self, layer: LowRank, x: Tensor, down: Tensor, hidden: Tensor) -> None:
        """Note that a linear layer got x, of which its `down` made `hidden`."""
        seen = self._seen.get(id(x))
        if seen is None or seen.input() is not x:
            self._ended += [seen] if seen is not None else []
            self._seen[id(x)] = _Seen(weakref.ref(x), down, hidden, [layer])
        elif layer not in seen.members:
            seen.equal.append((F.linear(x, seen.down) == seen.hidden).all())
            seen.members.append(layer)

    def shared(self) -> list[SharedInput]:
        """The groups of two and more, each of one set of variants. Reads back once whether inputs stayed the same."""
        candidates = [seen for seen in (*self._ended, *self._seen.values()) if len(seen.members) > 1]
        if not candidates:
            return []
        equal = torch.stack([torch.stack(seen.equal).all() for seen in candidates]).tolist()
        groups: dict[tuple, list[LowRank]] = {}
        for i, (seen, kept) in enumerate(zip(candidates, equal, strict=True)):
            for layer in seen.members if kept else ():
                if layer.shared is None:
                    groups.setdefault((i, layer.variants), []).append(layer)
        return [SharedInput(members) for members in groups.values() if len(members) > 1]

    def end(self) -> None:
        """Look no longer."""
        for layer in self._layers:
            layer.watch = None
        self._seen.clear()
        self._ended.clear()
