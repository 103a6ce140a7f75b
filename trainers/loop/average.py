"""A running average of the LoRA's weights, which follows the optimiser's noise less than the weights do.

KL bought by noise buys no reward, so the average reaches the same reward nearer to the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..sharding import shared_out


class Average:
    """average <- decay * average + (1 - decay) * weights after every update; decay 0 is the weights themselves.

    While few updates were made the decay is smaller, updates / (updates + 10), so that the start is forgotten.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self.parameters, self.decay, self.updates = dict(parameters), decay, 0
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update."""
        decay = min(self.decay, self.updates / (self.updates + 10))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.average[name].mul_(decay).add_(parameter, alpha=1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the place of the weights, which come back whatever happens."""
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        copy(self.average, self.parameters)
        try:
            yield
        finally:
            copy(weights, self.parameters)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Take up a checkpoint's."""
        copy(state["average"], self.average)
        self.updates = state["updates"]


@torch.no_grad()
def copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """The values of `source` written into `target`."""
    for name, tensor in target.items():
        tensor.copy_(shared_out(source[name], tensor))
