"""The guided model under each of several variants in turn, from passes of the network that all turns share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class NetworkCall(Protocol):
    """A call of the network below guidance: its input, and its predictions (k, rows, ...) of variants (k, images)."""

    x: torch.Tensor
    sigma: torch.Tensor
    images: int

    def evaluate(self, variants: torch.Tensor) -> torch.Tensor:
        """The predictions."""
        ...


@dataclass
class _SharedCall:
    """A call that all turns share: its input, its predictions (k, rows, ...)."""

    x: torch.Tensor
    sigma: torch.Tensor
    predictions: torch.Tensor

    def answers(self, call: NetworkCall) -> bool:
        """Whether `call` asks for the same."""
        same = self.x.shape == call.x.shape and torch.equal(self.x, call.x)
        return same and torch.equal(self.sigma, call.sigma)


class Turns:
    """Those of one evaluation of the guided model.

    variants: gives the variants (k, images) of a call with `images` images, one row per turn. The passes are made in
    the first turn only; a call that comes with another input than the first turn's is evaluated on its own.
    """

    def __init__(self, variants: Callable[[int], torch.Tensor]):
        self._variants = variants
        self._calls: list[_SharedCall] = []
        self._turn = self._place = 0

    def take(self, turn: int, predict: Callable[[], torch.Tensor]) -> torch.Tensor:
        """predict(), whose calls of the network are all of the variant whose turn it is."""
        self._turn, self._place = turn, 0
        return predict()

    def prediction(self, call: NetworkCall) -> torch.Tensor:
        """The prediction (rows, ...) of the variant whose turn it is."""
        variants = self._variants(call.images)
        if self._place == len(self._calls):
            self._calls.append(_SharedCall(call.x, call.sigma, call.evaluate(variants)))
        shared = self._calls[self._place]
        self._place += 1
        if shared.answers(call):
            return shared.predictions[self._turn]
        return call.evaluate(variants[self._turn : self._turn + 1])[0]
