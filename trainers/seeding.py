"""Random generators by purpose: every draw follows from the run's seed and its purpose, not from process or order.

So one seed gives one run whatever the number of processes, and a resumed run goes on exactly without saved generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """The generator (on the CPU) of one purpose, such as stream(seed, "noise", image)."""
    text = ":".join(map(str, (seed, purpose, *numbers)))
    value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(value % 2**63)


class ImageNoise:
    """Standard normal noise, one generator per image: a sample is the same in any batch and on any process."""

    def __init__(self, generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor):
        """shape: of one image's latents.  like: a tensor whose device and dtype the noise gets."""
        self.generators, self.shape, self.like = list(generators), tuple(shape), like

    def __call__(self) -> Tensor:
        """The next draw, (batch, *shape)."""
        drawn = [torch.randn(self.shape, generator=generator, dtype=self._dtype()) for generator in self.generators]
        return torch.stack(drawn).to(self.like.device)

    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.like.dtype, torch.float32)  # states stay in float32 at least
