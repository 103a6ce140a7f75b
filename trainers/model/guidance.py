"""Classifier-free guidance: the rows and conditions of one call of a network, and the guided prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .families import Conditions


@dataclass(frozen=True)
class Guidance:
    """n prompts for a network, under a guidance scale cfg.

    conditions: rows of [no prompt..., prompts...].  sides: 2, or 1 where there is no unconditional branch, which is so
    at cfg 1 and where guidance is an input of the network.
    """

    conditions: Conditions
    cfg: float
    sides: int

    def rows(self, x: Tensor) -> Tensor:
        """x (n, ...) once for each side, (sides * n, ...), as the conditions are."""
        return torch.cat([x] * self.sides)

    def guided(self, predictions: Tensor) -> Tensor:
        """uncond + cfg (cond - uncond), (..., n, c, h, w), of the predictions (..., sides * n, c, h, w) for `rows`."""
        if self.sides == 1:
            return predictions
        empty, prompted = predictions.chunk(2, dim=-4)
        return empty + self.cfg * (prompted - empty)
