"""An adapter matched to a host: every module to its target, factors in the shape that target wants."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BlendError
from .factors import Adapter, Factors
from .families import family_of, likely_reading
from .foreign import first_of
from .report import LoadReport
from .spelling import canonical
from .targets import Target, TargetIndex


def resolve(
    adapter: Adapter, index: TargetIndex, *, allow_partial: bool = False
) -> tuple[dict[Target, Factors], LoadReport]:
    """(factors by target, report). Slices keep their Target, so two targets may name one module.

    Raises BlendError when nothing matches, when some modules do not match (unless allow_partial), when a shape does
    not fit, and when two modules of the file hit the same rows.
    """
    found = {module: index.find(module) for module in adapter.modules}
    unmatched = [module for module, targets in found.items() if not targets]
    if len(unmatched) == len(found):
        raise _nothing_matched(adapter, index)
    if unmatched and not allow_partial:
        raise _partly_matched(adapter, index, unmatched)
    resolved: dict[Target, Factors] = {}
    taken: dict[str, list[tuple[Target, str]]] = {}
    for module, targets in found.items():
        for target, factors in _placed(module, adapter.modules[module], targets) if targets else ():
            _refuse_overlap(target, module, taken.setdefault(target.module, []), adapter.label)
            resolved[target] = factors
    return resolved, _report(adapter, index, unmatched)


def _placed(module: str, factors: Factors, targets: Sequence[Target]) -> list[tuple[Target, Factors]]:
    """The factors on their targets: rows of `up` dealt out in order, halves swapped, `down` in the target's kind."""
    _check_shape(module, factors, targets)
    blocks = factors.up.split([target.height for target in targets])
    return [
        (
            replace(target, swap_halves=False),
            Factors(_down_for(target, factors.down), _swapped(up) if target.swap_halves else up, factors.scale),
        )
        for target, up in zip(targets, blocks, strict=True)
    ]


def _check_shape(module: str, factors: Factors, targets: Sequence[Target]) -> None:
    came = (factors.up.shape[0], *factors.down.shape[1:])
    expected = (sum(target.height for target in targets), *targets[0].shape[1:])
    if _squeezed(came) == _squeezed(expected):
        return
    reading = likely_reading(came, expected)
    raise BlendError(
        f"{module}: the LoRA's delta has shape {came}, the model's weight {expected}"
        f"{' (a slice)' if targets[0].rows else ''}. {reading + '. ' if reading else ''}"
        "Choose a LoRA trained on this model."
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution (SD 1.5's proj_in) and a linear layer (SDXL's) are the same thing."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _down_for(target: Target, down: Tensor) -> Tensor:
    return down.reshape(down.shape[0], *target.shape[1:])


def _swapped(up: Tensor) -> Tensor:
    first, second = up.chunk(2)
    return torch.cat([second, first])


def _refuse_overlap(target: Target, module: str, taken: list[tuple[Target, str]], label: str) -> None:
    """Raise if rows of the target are among those `taken` on the same module by another name; add it otherwise."""
    start, end = target.span
    for other, name in taken:
        if start < other.span[1] and other.span[0] < end:
            raise BlendError(
                f"{label}: {name!r} and {module!r} both act on {target.module} (rows {start} to {end}). "
                "Adding both would double it; keep one of the two spellings."
            )
    taken.append((target, module))


def _nothing_matched(adapter: Adapter, index: TargetIndex) -> BlendError:
    return BlendError(
        f"{adapter.label}: none of its {len(adapter.modules)} modules is in this model. "
        f"First names: {first_of(list(adapter.modules))}. They look like {_family(adapter)}; "
        f"the model looks like {index.family}. Choose a LoRA trained on this model."
    )


def _partly_matched(adapter: Adapter, index: TargetIndex, unmatched: Sequence[str]) -> BlendError:
    return BlendError(
        f"{adapter.label}: {len(unmatched)} of its {len(adapter.modules)} modules are not in this model "
        f"({index.family}): {first_of(unmatched)}. Choose a LoRA trained on this model, or allow partial loading."
    )


def _family(adapter: Adapter) -> str:
    return family_of({canonical(module): factors.down.shape[1] for module, factors in adapter.modules.items()})


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
        left_out={**adapter.skipped, **dict.fromkeys(unmatched, "no such module in the model")},
        notes=adapter.notes,
    )
