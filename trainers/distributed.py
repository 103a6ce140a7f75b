"""Tensors of all processes in the images' order, so that results do not depend on who computed what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..blend_core.errors import BlendError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Gathering:
    """One process; with an accelerator, all of its processes."""

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator

    def in_order(self, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """The rows (images, ...) of every process, by image number. numbers: of this process's images, one a row."""
        order = torch.tensor(numbers)
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            device = self.accelerator.device
            rows = self.accelerator.gather(rows.to(device).contiguous())
            order = self.accelerator.gather(order.to(device))
        return rows[order.argsort().to(rows.device)]

    def shares(self, rows: Tensor, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """Back from `in_order`: the rows of each chunk of this process, which holds images of these numbers."""
        first = min(map(min, chunks))
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            first = int(self.accelerator.gather(torch.tensor([first], device=self.accelerator.device)).min())
        return [rows[torch.tensor(numbers, device=rows.device) - first] for numbers in chunks]

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
        prompts: list[Any] | None = [None] * processes if main else None
        dist.gather(rows.detach().contiguous(), everyone)
        dist.gather_object(list(texts), prompts)
        answer: list[Any] = [None]
        if main:
            try:
                answer = [function(torch.cat(everyone), list(chain.from_iterable(prompts))).detach().cpu()]
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
