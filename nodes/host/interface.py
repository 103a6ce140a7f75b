"""What a node tells ComfyUI while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker


def progress_of(total: int) -> Callable[[int], None]:
    """Shows progress on the node: the function takes how many of `total` have been done since it was last called."""
    return comfy.utils.ProgressBar(total).update


@contextmanager
def part_of_progress(part: int, parts: int) -> Iterator[None]:
    """While open, a bar that ComfyUI draws on the node fills the `part`-th of equal parts, counted from 0."""
    hook = comfy.utils.PROGRESS_BAR_HOOK

    def of_all(value, total, *preview, **node):
        hook(part * total + value, parts * total, *preview, **node)

    comfy.utils.set_progress_bar_global_hook(hook and of_all)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)


def blocked(reason: str) -> ExecutionBlocker:
    """An output without a value: nodes behind it fail with `reason`."""
    return ExecutionBlocker(reason)
