"""DPOK's learned baseline V(x_t, prompt, t) (arXiv 2305.16381): a small network that predicts a step's return."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..seeding import stream
from . import losses

BATCH = 256  # transitions per update
WIDTH = 256


class ValueBaseline:
    """Three hidden layers over the features of (x_t, prompt, t); every process fits the same network on all samples.

    A baseline may be anything that does not know the action, so a bad fit costs variance and no bias: it is read
    before it is fitted on the same epoch. Works in units of the returns' running mean and spread.
    """

    def __init__(self, seed: int, learning_rate: float, updates: int):
        self.seed, self.learning_rate, self.updates = seed, learning_rate, updates
        self.network: nn.Module | None = None
        self.optimiser: torch.optim.Optimizer | None = None
        self.mean, self.deviation = 0.0, 1.0

    @property
    def ready(self) -> bool:
        """Whether there was a fit to read."""
        return self.network is not None

    def of(self, features: Tensor) -> Tensor:
        """V of features (n, steps, width), (n, steps)."""
        with torch.no_grad():
            return self.mean + self.deviation * self.network(features).squeeze(-1)

    def fit(self, features: Tensor, returns: Tensor, epoch: int) -> float:
        """A few updates on an epoch's transitions, returns (n, steps); the last one's loss, in squared spreads."""
        flat, targets = features.flatten(0, 1), returns.flatten().float()
        if self.network is None:
            self._build(flat.shape[1], flat.device)
            self.mean, self.deviation = targets.mean().item(), max(targets.std().item(), 1e-6)
        targets = (targets - self.mean) / self.deviation
        draw = stream(self.seed, "value", epoch)
        loss = torch.zeros(())
        for _ in range(self.updates):
            rows = torch.randint(len(flat), (min(BATCH, len(flat)),), generator=draw).to(flat.device)
            loss = losses.value(self.network(flat[rows]).squeeze(-1), targets[rows])
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return loss.item()

    def _build(self, width: int, device: torch.device) -> None:
        sizes = [width, WIDTH, WIDTH, WIDTH]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.network = nn.Sequential(*hidden, nn.Linear(WIDTH, 1)).to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), self.learning_rate)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        if self.network is None:
            return {}
        state = {"mean": self.mean, "deviation": self.deviation, "width": self.network[0].in_features}
        return state | {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take up a checkpoint's."""
        if not state:
            return
        self.mean, self.deviation = state["mean"], state["deviation"]
        self._build(state["width"], next(iter(state["network"].values())).device)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
