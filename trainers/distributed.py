"""Tensors of all processes in the images' order, so that results do not depend on who computed what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..blend_core.errors import BlendError

if TYPE_CHECKING:
    from .objectives.all import Sample


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

    def on_main(
        self, function: Callable[[Tensor, list[str]], Tensor] | None, rows: Tensor, texts: Sequence[str]
    ) -> Tensor:
        """function(rows, texts), (n,), without gradient; the main process computes it for the rows of all at once.

        rows: (n, ...), as many on every process, with one text each.  function: None on the others.  What it raises as
        BlendError is raised on every process, so that none waits for the rest.
        """
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return function(rows, list(texts))
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        main = process == 0
        everyone = [torch.empty_like(rows) for _ in range(processes)] if main else None
        told: list[Any] | None = [None] * processes if main else None
        dist.gather(rows.detach().contiguous(), everyone)
        dist.gather_object(list(texts), told)
        answer: list[Any] = [None]
        if main:
            try:
                answer = [function(torch.cat(everyone), [text for each in told for text in each]).detach().cpu()]
            except BlendError as error:
                answer = [str(error)]
        dist.broadcast_object_list(answer)
        if isinstance(answer[0], str):
            raise BlendError(answer[0])
        return answer[0].chunk(processes)[process].to(rows.device)

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
