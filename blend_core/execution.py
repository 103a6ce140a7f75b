"""Evaluating several variants of one network: as one larger batch, or one pass after another.

Rows follow the host: a call's batch holds `chunks` groups (conditional, unconditional, ...) of the same `batch` images.
k variants are laid out as if each image stood k times in the batch, (chunks, k, batch): what a host keeps per chunk
stays valid, and code that slices rows by chunk goes on working.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bank import Attachment

Call = Callable[[Any, Tensor], Tensor]
"""call(inputs, variants): the network's prediction (rows * g, ...) for inputs repeated for variants (g, batch)."""


def evaluate_variants(
    call: Call, inputs: Any, rows: int, variants: Tensor, attachment: Attachment, group: int
) -> Tensor:
    """Predictions (k, rows, ...) of `variants` (k, batch) on `inputs`, `group` variants per pass.

    inputs: any nest of dicts, lists and tuples; tensors whose first axis is `rows` are repeated, the rest is passed on.
    Every pass gets containers of its own, because networks empty some of them (ControlNet's lists) while they run.
    """
    parts = variants.split(group)
    return torch.cat([_one_pass(call, inputs, rows, part, attachment) for part in parts])


def _one_pass(call: Call, inputs: Any, rows: int, variants: Tensor, attachment: Attachment) -> Tensor:
    k, batch = variants.shape
    chunks = rows // batch
    selection = variants.expand(chunks, k, batch).flatten().tolist()
    with attachment.using(selection):
        prediction = call(repeat_rows(inputs, rows, chunks, k), variants)
    shape = prediction.shape[1:]
    return prediction.reshape(chunks, k, batch, *shape).transpose(0, 1).reshape(k, rows, *shape)


def repeat_rows(inputs: Any, rows: int, chunks: int, k: int) -> Any:
    """`inputs` with every tensor of `rows` rows repeated to (chunks, k, batch) rows, in new containers."""
    if isinstance(inputs, Tensor):
        if k == 1 or inputs.dim() == 0 or inputs.shape[0] != rows:
            return inputs
        shape = inputs.shape[1:]
        grouped = inputs.reshape(chunks, 1, rows // chunks, *shape)
        return grouped.expand(chunks, k, rows // chunks, *shape).reshape(rows * k, *shape)
    if type(inputs) is dict:
        return {key: repeat_rows(value, rows, chunks, k) for key, value in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(repeat_rows(value, rows, chunks, k) for value in inputs)
    return inputs
