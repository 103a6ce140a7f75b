"""The interface of an objective: it collects chunks, compares them, and gives the passes of an update.

All climb J = E[reward - kl_weight * sum of KL] (losses.py) of a Policy (model/policy.py). An objective keeps nothing
between these calls but what `state_dict` says; whatever a pass needs is in its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..data.prompts import Chunk
from ..model.policy import Encoding

Stats = dict[str, float]
"""Figures for the log, by name. Those of passes are averaged; of names that start with max_ the largest is kept."""

Pass = Callable[[], tuple[Tensor, Stats]]
"""One forward: a loss (a scalar) to be differentiated, and its figures. Losses of all passes of an update add up."""


@dataclass(frozen=True)
class Sample:
    """A chunk of n images. prompts: n texts.  encoding: of these, by the policy."""

    chunk: Chunk
    prompts: list[str]
    encoding: Encoding


Collected = TypeVar("Collected", bound=Sample)
Compared = TypeVar("Compared", bound=Sample)


class Objective(Protocol[Collected, Compared]):
    """One algorithm. Collected: its samples by themselves.  Compared: with what follows from the others' samples."""

    def collect(self, chunk: Chunk) -> Collected:
        """What the policy makes of a chunk before any update, without gradient."""
        ...

    def compare(self, samples: list[Collected], epoch: int) -> tuple[list[Compared], Stats]:
        """The epoch's samples of this process, weighed against those of all, and the epoch's figures.

        Every process must call it. epoch: counted from 0.
        """
        ...

    def passes(self, samples: Sequence[Compared], draw: torch.Generator) -> list[Pass]:
        """The passes of one update on a minibatch. draw: for what is chosen at random once for all samples."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the objective."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's."""
        ...


class Stateless:
    """An objective that keeps nothing from one epoch to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the network's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""
