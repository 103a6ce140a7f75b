"""Tensors of all processes in the images' order, so that results do not depend on who computed what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .objectives import Sample


class Gathering:
    """One process; with an accelerator, all of its processes."""

    def __init__(self, accelerator: Any = None):
        self.accelerator = accelerator

    def of(self, own: Tensor, samples: Sequence[Sample]) -> Tensor:
        """own (images of this process, ...) from every process, ordered by image number."""
        numbers = torch.tensor([number for sample in samples for number in sample.chunk.numbers])
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            device = self.accelerator.device
            own = self.accelerator.gather(own.to(device).contiguous())
            numbers = self.accelerator.gather(numbers.to(device))
        return own[numbers.argsort().to(own.device)]

    def own(self, everyone: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
        """The rows of `everyone` (ordered by image number) that belong to each of this process's samples."""
        numbers = [sample.chunk.numbers for sample in samples]
        first = min(min(each) for each in numbers)
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            first = int(self.accelerator.gather(torch.tensor([first], device=self.accelerator.device)).min())
        return [everyone[torch.tensor(each, device=everyone.device) - first] for each in numbers]

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """The means of figures over the processes, which all have the same names."""
        if self.accelerator is None or self.accelerator.num_processes == 1 or not figures:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float32, device=self.accelerator.device)
        return dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all get the same answer."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)
