"""An adapter matched to a host: every module to its target, factors in the shape that target wants."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BlendError
from .adapter import Adapter
from .changes import Change, Delta, difference
from .foreign import first_of
from .names.families import family_of, likely_reading
from .names.spelling import canonical
from .names.target import Target
from .names.targets import TargetIndex
from .report import LoadReport


def resolve(
    adapter: Adapter, index: TargetIndex, *, allow_partial: bool = False
) -> tuple[dict[Target, Change], LoadReport]:
    """(changes by target, report). Slices keep their Target, so two targets may name one module.

    Raises BlendError when nothing matches, when some modules do not match (unless allow_partial), when a shape does
    not fit, and when two modules of the file hit the same rows.
    """
    foreign = index.is_foreign(adapter.modules)
    places_of = {module: _places(module, change, index, foreign) for module, change in adapter.modules.items()}
    unmatched = [module for module, places in places_of.items() if not all(targets for targets, _ in places)]
    if len(unmatched) == len(places_of):
        raise _nothing_matched(adapter, index)
    if unmatched and not allow_partial:
        raise _partly_matched(adapter, index, unmatched)
    resolved: dict[Target, Change] = {}
    occupied: dict[tuple[str, str], list[tuple[Target, str]]] = {}
    for module, places in places_of.items():
        for targets, change in places if module not in unmatched else ():
            if adapter.adapter_name == _DIFFSYNTH and len(targets) == 1 and (head := index.head_size(targets[0])):
                change = change.at_rows(_out_of_heads(targets[0].height, head))
            for target, part in _placed(module, change, targets, index):
                rows = occupied.setdefault((target.module, target.parameter), [])
                _refuse_overlap(target, module, rows, adapter.label)
                resolved[target] = part
    return resolved, _report(adapter, index, unmatched)


_DIFFSYNTH = "default"  # under the original's names, DiffSynth alone writes an adapter's name, and rows head by head


def _out_of_heads(rows: int, head: int) -> Tensor:
    """Which rows of [q k v of head 0, q k v of head 1, ...] give [q of all heads, k of all, v of all]."""
    return torch.arange(rows).view(-1, 3, head).transpose(0, 1).flatten()


_Place = tuple[tuple[Target, ...], Change]
"""The targets of a change, none where there is no such weight; and the change."""


def _places(module: str, change: Change, index: TargetIndex, foreign: bool) -> list[_Place]:
    """Where a module's change goes: the bias with a layer's weight, else a parameter of its own."""
    targets = index.find(module, foreign)
    of_a_layer = targets and all(target.parameter == "weight" for target in targets)
    if of_a_layer or change.bias is None:
        return [(targets, change)]
    bias = (index.find(f"{module}.bias", foreign), Change(difference({"diff": change.bias})))
    return [bias] if change.delta is None else [(targets, replace(change, bias=None)), bias]


def _placed(
    module: str, change: Change, targets: Sequence[Target], index: TargetIndex
) -> list[tuple[Target, Change]]:
    """The change on its targets: output rows dealt out in order, halves swapped, `down` in the target's kind."""
    _check_shape(module, change, targets, index)
    placed, first = [], 0
    for target in targets:
        whole = len(targets) == 1 and not target.swap_halves
        part = change if whole else change.at_rows(_rows(target, first))
        first += target.height
        placed.append((replace(target, swap_halves=False), part.fitted(target.shape)))
    return placed


def _check_shape(module: str, change: Change, targets: Sequence[Target], index: TargetIndex) -> None:
    expected = (sum(target.height for target in targets), *targets[0].shape[1:])
    came = change.shape
    _check_beside(module, change, targets, expected, index)
    if change.delta is None:
        return
    if _squeezed(came) == _squeezed(expected) or came == (expected[0], math.prod(expected[1:])):
        return
    if targets[0].parameter != "weight" and math.prod(came) == math.prod(expected):  # a table or one long row of it
        return
    reading = likely_reading(came, expected)
    raise BlendError(
        f"{module}: the LoRA's delta has shape {came}, the model's weight {expected}"
        f"{' (a slice)' if targets[0].rows else ''}. {reading + '. ' if reading else ''}"
        "Choose a LoRA trained on this model."
    )


def _check_beside(
    module: str, change: Change, targets: Sequence[Target], expected: tuple[int, ...], index: TargetIndex
) -> None:
    """Raise BlendError for a bias or a magnitude that does not fit the weight, and for a product that cannot be cut."""
    if len(targets) > 1 and isinstance(change.delta, Delta) and change.delta.kind == "LoKr":
        raise BlendError(
            f"{module}: the file's Kronecker product is of one weight, of which this model has {len(targets)} "
            f"({', '.join(target.module for target in targets)}); it cannot be cut. Use it where they are one, or "
            "merge it into a model."
        )
    outputs = _outputs(targets, index)
    if change.bias is not None and change.bias.shape != (outputs,):
        raise BlendError(
            f"{module}: the file's bias has {change.bias.numel()} numbers, shape {tuple(change.bias.shape)}, the "
            f"model's layer {outputs}. Choose a LoRA trained on this model."
        )
    magnitude = change.magnitude
    if magnitude is None or magnitude.of_rows:
        return
    if len(targets) > 1 or magnitude.values.numel() != expected[1]:
        raise BlendError(
            f"{module}: DoRA's magnitude has {magnitude.values.numel()} numbers, expected {expected[1]}, one per input "
            f"of a single weight; here it acts on {len(targets)}. Merge the file into a model, or choose a LoRA "
            "trained on this model."
        )


def _outputs(targets: Sequence[Target], index: TargetIndex) -> int:
    """How many numbers a bias of these targets has: their rows, except for transposed convolutions."""
    if len(targets) == 1 and targets[0].rows is None:
        bias = index.bias_of(targets[0])
        return targets[0].height if bias is None else bias.height
    return sum(target.height for target in targets)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution (SD 1.5's proj_in) and a linear layer (SDXL's) are the same thing."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _rows(target: Target, first: int) -> Tensor:
    """The rows of a change, from `first`, that a target takes, in its order."""
    rows = torch.arange(first, first + target.height)
    return torch.cat([*rows.chunk(2)][::-1]) if target.swap_halves else rows


def _refuse_overlap(target: Target, module: str, occupied: list[tuple[Target, str]], label: str) -> None:
    """Raise if rows of the target are among those `taken` on the same module by another name; add it otherwise."""
    start, end = target.span
    for other, name in occupied:
        if start < other.span[1] and other.span[0] < end:
            raise BlendError(
                f"{label}: {name!r} and {module!r} both act on {target.module} (rows {start} to {end}). "
                "Adding both would double it; keep one of the two spellings."
            )
    occupied.append((target, module))


def _nothing_matched(adapter: Adapter, index: TargetIndex) -> BlendError:
    family = _family(adapter)
    if family == index.family:
        look = f"They look like {family}, as this model does, but none of these names is in it"
    else:
        look = f"They look like {family}; the model looks like {index.family}"
    return BlendError(
        f"{adapter.label}: none of its {len(adapter.modules)} modules is in this model. "
        f"First names: {first_of(list(adapter.modules))}. {look}. Choose a LoRA trained on this model."
    )


def _partly_matched(adapter: Adapter, index: TargetIndex, unmatched: Sequence[str]) -> BlendError:
    return BlendError(
        f"{adapter.label}: {len(unmatched)} of its {len(adapter.modules)} modules are not in this model "
        f"({index.family}): {first_of(unmatched)}. Choose a LoRA trained on this model, or allow partial loading."
    )


def _family(adapter: Adapter) -> str:
    shapes = {canonical(module): change.shape for module, change in adapter.modules.items()}
    return family_of({name: shape[1] for name, shape in shapes.items() if len(shape) > 1})


def _report(adapter: Adapter, index: TargetIndex, unmatched: Sequence[str]) -> LoadReport:
    return LoadReport(
        label=adapter.label,
        path=adapter.path,
        spelling=adapter.spelling,
        adapter_name=adapter.adapter_name,
        matched=len(adapter.modules) - len(unmatched),
        in_file=len(adapter.modules),
        ranks=adapter.ranks,
        scale_source=adapter.scale_source,
        family=index.family,
        kinds=adapter.kinds,
        left_out={**adapter.skipped, **dict.fromkeys(unmatched, "no such module in the model")},
        notes=adapter.notes,
    )
