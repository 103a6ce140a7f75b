"""Evaluating several variants of one network: as one larger batch, or one pass after another.

Rows follow the host: a call's batch holds `chunks` groups (conditional, unconditional, ...) of the same `batch` images.
k variants are laid out as if each image stood k times in the batch, (chunks, k, batch): what a host keeps per chunk
stays valid, and code that slices rows by chunk goes on working.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bank import Attachment


@dataclass(frozen=True)
class ByVariant:
    """An input of a call that differs between variants: a nest of tensors for the base, 0, and for some variants."""

    of: Mapping[int, Any]

    def rows(self, selection: Sequence[int]) -> Any:
        """The nest whose row i is variant selection[i]'s."""
        base, *others = [(variant, nest) for variant, nest in self.of.items() if variant == 0 or variant in selection]
        return _chosen(base[1], dict(others), torch.tensor(selection))


def _chosen(base: Any, others: Mapping[int, Any], selection: Tensor) -> Any:
    if isinstance(base, Tensor) and base.dim():
        for variant, tensor in others.items():
            of_variant = (selection == variant).to(base.device).view(-1, *[1] * (base.dim() - 1))
            base = torch.where(of_variant, tensor, base)
        return base
    if type(base) is dict:
        return {key: _chosen(value, _at(others, key), selection) for key, value in base.items()}
    if type(base) in (list, tuple):
        return type(base)(_chosen(value, _at(others, i), selection) for i, value in enumerate(base))
    return base


def _at(nests: Mapping[int, Any], key: Any) -> dict[int, Any]:
    return {variant: nest[key] for variant, nest in nests.items()}


Call = Callable[[Any, Tensor], Tensor]
"""call(inputs, variants): the network's prediction (rows * g, ...) for inputs repeated for variants (g, batch)."""


def evaluate_variants(
    call: Call,
    inputs: Any,
    rows: int,
    variants: Tensor,
    attachment: Attachment,
    group: int,
    apart: bool = False,
    unmixed: Collection[int] = (),
) -> Tensor:
    """Predictions (k, rows, ...) of `variants` (k, batch) on `inputs`, `group` variants per pass.

    inputs: any nest of dicts, lists and tuples; tensors whose first axis is `rows` are repeated, the rest is passed on.
    Every pass gets containers of its own, because networks empty some of them (ControlNet's lists) while they run.
    apart: no pass holds two variants, and images of different variants are evaluated on their own. A network whose
    layers do not get the batch as their first axis needs it.
    unmixed: variants that no pass mixes with others, because `call` has another network for each of them.
    """
    batch = variants.shape[1]
    blocks = _blocks(variants, None if apart else frozenset(unmixed))
    predictions = None
    if len(blocks) == 1:
        return _passes(call, inputs, rows, variants.split(1 if apart else group), attachment)
    for places, images in blocks:
        own_rows = (torch.arange(0, rows, batch)[:, None] + torch.tensor(images)).flatten()
        block_inputs = take_rows(inputs, rows, own_rows)
        parts = variants[places][:, images].split(1 if apart else group)
        block_predictions = _passes(call, block_inputs, len(own_rows), parts, attachment)
        if predictions is None:
            predictions = block_predictions.new_empty(len(variants), rows, *block_predictions.shape[2:])
        predictions[torch.tensor(places)[:, None], own_rows] = block_predictions
    assert predictions is not None  # there is a block
    return predictions


def _blocks(variants: Tensor, unmixed: frozenset[int] | None) -> list[tuple[list[int], list[int]]]:
    """The entries of `variants` (k, batch) as blocks (rows, columns), in each of which passes may be shared.

    Those are one of the variants in `alone` each, or none of them. None: each block has one variant, whichever.
    """
    blocks: dict[tuple, list[int]] = {}
    for place, of_images in enumerate(variants.tolist()):
        kinds = [variant if unmixed is None or variant in unmixed else None for variant in of_images]
        for kind in dict.fromkeys(kinds):
            images = tuple(image for image, image_kind in enumerate(kinds) if image_kind == kind)
            blocks.setdefault((kind, images), []).append(place)
    return [(places, list(images)) for (_, images), places in blocks.items()]


def _passes(call: Call, inputs: Any, rows: int, parts: Sequence[Tensor], attachment: Attachment) -> Tensor:
    passes = [_one_pass(call, inputs, rows, part, attachment) for part in parts]
    return passes[0] if len(passes) == 1 else torch.cat(passes)


def _one_pass(call: Call, inputs: Any, rows: int, variants: Tensor, attachment: Attachment) -> Tensor:
    k, batch = variants.shape
    chunks = rows // batch
    selection = variants.expand(chunks, k, batch).flatten().tolist()
    with attachment.using(selection, _device_of(inputs)):
        prediction = call(_of_rows(repeat_rows(inputs, rows, chunks, k), selection), variants)
    shape = prediction.shape[1:]
    return prediction.reshape(chunks, k, batch, *shape).transpose(0, 1).reshape(k, rows, *shape)


def _of_rows(inputs: Any, selection: Sequence[int]) -> Any:
    """`inputs` with every row's own of what differs between variants."""
    if isinstance(inputs, ByVariant):
        return inputs.rows(selection)
    if type(inputs) is dict:
        return {key: _of_rows(value, selection) for key, value in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(_of_rows(value, selection) for value in inputs)
    return inputs


def _device_of(inputs: Any) -> torch.device | None:
    """Where the first tensor of a nest lies."""
    if isinstance(inputs, Tensor):
        return inputs.device
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, list | tuple) else ()
    return next((device for device in map(_device_of, values) if device is not None), None)


def mixed(variants: Tensor, group: int) -> bool:
    """Whether a pass of `group` of the variants (k, batch) would hold different ones."""
    return any(len(part.unique()) > 1 for part in variants.split(group))


def agree(together: Tensor, separate: Tensor) -> bool:
    """Whether a network kept the rows of a batch apart, by two evaluations (k, rows, ...) of the same variants.

    together: in passes of several variants.  separate: one variant per pass. They may differ by a tenth of what the
    variants differ by, of which a row of another variant is off by all; where every image has one variant, a fifth of
    the prediction stands for that.
    """
    together, separate = together.float(), separate.float()
    spread = separate - separate.mean(0) if len(separate) > 1 else separate / 5
    return bool((together - separate).norm() <= spread.norm() / 10)


def repeat_rows(inputs: Any, rows: int, chunks: int, k: int) -> Any:
    """`inputs` with every tensor of `rows` rows repeated to (chunks, k, batch) rows, in new containers."""

    def repeated(tensor: Tensor) -> Tensor:
        if k == 1:
            return tensor
        shape = tensor.shape[1:]
        grouped = tensor.reshape(chunks, 1, rows // chunks, *shape)
        return grouped.expand(chunks, k, rows // chunks, *shape).reshape(rows * k, *shape)

    return _with_rows(inputs, rows, repeated)


def take_rows(inputs: Any, rows: int, places: Tensor) -> Any:
    """`inputs` with every tensor of `rows` rows reduced to those at `places`, in new containers."""
    if len(places) == rows:
        return inputs
    return _with_rows(inputs, rows, lambda tensor: tensor[places.to(tensor.device)])


def _with_rows(inputs: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`inputs` with change(tensor) for every tensor of `rows` rows, in new containers."""
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.dim() and inputs.shape[0] == rows else inputs
    if isinstance(inputs, ByVariant):
        return ByVariant({variant: _with_rows(nest, rows, change) for variant, nest in inputs.of.items()})
    if type(inputs) is dict:
        return {key: _with_rows(value, rows, change) for key, value in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(_with_rows(value, rows, change) for value in inputs)
    return inputs
