"""What a node tells ComfyUI while it runs."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker


def progress_of(total: int) -> Callable[[int], None]:
    """Shows progress on the node: the function takes how many of `total` have been done since it was last called."""
    return comfy.utils.ProgressBar(total).update


def blocked(reason: str) -> ExecutionBlocker:
    """An output without a value: nodes behind it fail with `reason`."""
    return ExecutionBlocker(reason)
