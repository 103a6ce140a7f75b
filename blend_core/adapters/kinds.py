"""What one module's tensors are together: a LoRA, LoHa, LoKr or a difference, with what stands next to it.

    kind = kind_of(module, record, file, full_rank)         # record: role -> key
    change = kind.build(parts)                              # parts: role -> tensor; of scale 1
    module = scaled(name, change, parts, scale)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import BlendError
from . import changes
from .changes import Change, Delta, Factors, Magnitude
from .names.spelling import Key
from .scale import Scale

Parts = Mapping[str, Tensor]
"""The tensors of one module, by role."""

LARGEST = 1e6  # of a factor, and of a weight's change; trained ones are below a thousand
_LARGEST_KERNEL = 16  # what a small core and a long `down` fold into is their product


@dataclass(frozen=True)
class Built:
    """A module's change of scale 1. rank: what alpha is divided by; None where there is none.

    scalable: whether alpha means anything to it.
    """

    delta: Factors | Delta | None
    rank: int | None = None
    scalable: bool = True


@dataclass(frozen=True)
class Kind:
    """A way to change a weight. needs: per part, the roles of which one group must be complete."""

    name: str
    needs: tuple[tuple[frozenset[str], ...], ...]
    build: Callable[[Parts], Built]
    may_have: frozenset[str] = frozenset()

    @property
    def roles(self) -> frozenset[str]:
        """All that can stand in it."""
        return self.may_have.union(*(group for part in self.needs for group in part))

    def missing(self, record: Mapping[str, Key]) -> list[str]:
        """The roles that a module's record lacks; empty where it is complete."""
        for part in self.needs:
            if not any(group <= record.keys() for group in part):
                return min((sorted(group - record.keys()) for group in part), key=len)
        return []


def kind_of(module: str, record: Mapping[str, Key], file: str, full_rank: bool) -> Kind:
    """What a module's keys are together. Raises BlendError where some are missing, or two kinds meet.

    full_rank: whether a `down` alone is a whole difference, in this file.
    """
    roles = record.keys() - BESIDE or record.keys()
    kinds = [kind for kind in _KINDS if kind.roles & roles] or [_LORA]
    if len(kinds) > 1:
        raise BlendError(
            f"{file}: {module} holds {' and '.join(kind.name for kind in kinds)} at once, expected one of them. "
            "The file was badly converted: save it again."
        )
    (kind,) = kinds
    if kind is _LORA and full_rank and record.keys() == {"down"}:
        return _FULL_RANK
    if missing := kind.missing(record):
        present = next(iter(record.values()))
        raise BlendError(
            f"{file}: {module} has {present.role} ({present.text!r}) but no {' and '.join(missing)}. A {kind.name} "
            "needs both; the file was cut or badly converted: save or download it again."
        )
    return kind


def checked(parts: Parts, record: Mapping[str, Key]) -> tuple[dict[str, Tensor], float]:
    """(the parts as finite floating tensors, the product of the largest numbers of those that are multiplied).

    Eight bits are widened to fp32, having no arithmetic of their own. Raises BlendError for what cannot be trained.
    """
    scales = {role.removesuffix("_scale"): parts[role] for role in parts if role in _SCALES}
    usable, bound = {}, 1.0
    for role in parts.keys() - _SCALES:
        if role == "alpha":
            usable[role] = parts[role]
            continue
        usable[role], largest = _checked(parts[role], record[role], scales.get(role))
        bound *= 1.0 if role in BESIDE else largest
    return usable, bound


def scaled(module: str, built: Built, parts: Parts, bound: float, scale: Scale | None) -> Change:
    """The change of a module at its scale, with what stands next to it. scale: None where it has none.

    bound: see `checked`. Raises BlendError for what cannot have been trained.
    """
    delta = built.delta
    if scale is not None and delta is not None:
        _refuse_absurd(module, bound * abs(scale.value), scale)
        delta = replace(delta, scale=scale.value)
    bias = None
    if "bias" in parts and delta is not None:  # of a LoRA's `up`: scaled as its product is
        bias = parts["bias"].float() * delta.scale
    if "diff_b" in parts:
        bias = parts["diff_b"].float() + (0 if bias is None else bias)
    return Change(delta, _magnitude(module, delta, parts), bias)


def _lora(parts: Parts) -> Built:
    """Factors, and their rank: `up` flattened to (out, rank), a Tucker core folded into `down`."""
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        down = _fold_core(parts["mid"], down)
    if up.ndim > 2 and set(up.shape[2:]) == {1}:
        up = up.flatten(1)
    if up.ndim != 2 or down.ndim < 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise BlendError(
            f"down has shape {tuple(down.shape)} and up {tuple(up.shape)}, expected (rank, in) and "
            "(out, rank) with one rank of at least 1. The file was badly converted: save it again."
        )
    return Built(Factors(down, up, 1.0), down.shape[0])


def _full_rank(parts: Parts) -> Built:
    """ai-toolkit's whole difference under the name of a `down`; resolving compares its shape with the weight's."""
    return Built(changes.difference({"diff": parts["down"]}))


def _difference(parts: Parts) -> Built:
    return Built(changes.difference({"diff": parts["diff"]}) if "diff" in parts else None, scalable=False)


def _product(formula: Callable[[Parts], tuple[Factors | Delta, int | None]]) -> Callable[[Parts], Built]:
    return lambda parts: Built(*formula({role: tensor for role, tensor in parts.items() if role not in BESIDE}))


def _groups(*parts: str) -> tuple[tuple[frozenset[str], ...], ...]:
    """Roles by part: alternatives are separated by "|", roles of one group by spaces."""
    return tuple(tuple(frozenset(group.split()) for group in part.split("|")) for part in parts)


BESIDE = frozenset({"alpha", "bias", "diff_b", "magnitude", "dora_scale"})
_SCALES = frozenset({"down_scale", "up_scale"})  # what factors in eight bits are multiplied by
_LORA = Kind("LoRA", _groups("down", "up"), _lora, frozenset({"mid"}) | _SCALES)
_FULL_RANK = Kind("difference of full rank", _groups("down"), _full_rank)
_KINDS = (
    _LORA,
    Kind(
        "LoHa",
        _groups("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        _product(changes.loha),
        frozenset({"hada_t1", "hada_t2"}),
    ),
    Kind(
        "LoKr",
        _groups("lokr_w1|lokr_w1_a lokr_w1_b", "lokr_w2|lokr_w2_a lokr_w2_b"),
        _product(changes.lokr),
        frozenset({"lokr_t2"}),
    ),
    Kind("whole difference", _groups("diff"), _difference),
    Kind("bias difference", _groups("diff_b"), _difference),
)


def _checked(tensor: Tensor, key: Key, scale: Tensor | None) -> tuple[Tensor, float]:
    """(a finite floating tensor of numbers that training can give, the largest of them). scale: of eight bits."""
    if scale is not None:
        return _checked(tensor.float() * scale.float(), key, None)
    if not tensor.is_floating_point():
        raise _of_strange_dtype(tensor, key)
    try:
        tensor = tensor.float() if tensor.element_size() == 1 else tensor
        largest = tensor.abs().max().item() if tensor.numel() else 0.0
    except (RuntimeError, NotImplementedError) as error:  # four bits, which torch stores and does not compute with
        raise _of_strange_dtype(tensor, key) from error
    if largest <= LARGEST:
        return tensor, largest
    if largest < float("inf"):
        raise BlendError(
            f"{key.text!r} holds {largest:.3g}, expected numbers up to {LARGEST:.0e}: no training gives such. The "
            "training diverged, or the file is damaged: take an earlier checkpoint, or download it again."
        )
    raise BlendError(
        f"{key.text!r} holds NaN or inf, expected finite numbers. The training diverged, or fp16 overflowed: "
        "take an earlier checkpoint."
    )


def _of_strange_dtype(tensor: Tensor, key: Key) -> BlendError:
    return BlendError(
        f"{key.text!r} holds {tensor.dtype}, expected a floating type. Save the LoRA in fp16, bf16 or fp32."
    )


def _refuse_absurd(module: str, bound: float, scale: Scale) -> None:
    """Raise BlendError where the largest numbers of a product and its scale come to more than a weight can be."""
    if not bound <= LARGEST:
        raise BlendError(
            f"{module}: its change of the weight comes to {bound:.3g} at {scale.words}, expected at most "
            f"{LARGEST:.0e}: no training gives such. Correct alpha or the typed scale, or take an earlier checkpoint."
        )


def _magnitude(module: str, delta: Factors | Delta | None, parts: Parts) -> Magnitude | None:
    """peft's magnitudes are of rows; LyCORIS writes those of columns too, told apart as ComfyUI does."""
    values = parts.get("magnitude", parts.get("dora_scale"))
    if values is None or delta is None:
        return None
    of_rows = "magnitude" in parts or values.shape[:1] == delta.shape[:1]
    if of_rows and values.numel() != delta.shape[0]:
        raise BlendError(
            f"{module}: DoRA's magnitude has shape {tuple(values.shape)}, expected {delta.shape[0]} numbers, one per "
            "output row. The file was badly converted: save it again."
        )
    return Magnitude(values.flatten(), of_rows)


def _fold_core(mid: Tensor, down: Tensor) -> Tensor:
    """The kernel that does `down` (rank, in, 1, 1) and then `mid` (rank, rank, kh, kw) in one convolution."""
    down = down.flatten(1) if down.ndim > 2 and set(down.shape[2:]) == {1} else down
    kernel = mid.shape[2:]
    square = mid.ndim > 2 and down.ndim == 2 and mid.shape[0] == mid.shape[1] == down.shape[0]
    if not square or max(kernel) > _LARGEST_KERNEL:
        raise BlendError(
            f"lora_mid has shape {tuple(mid.shape)} and down {tuple(down.shape)}, expected "
            f"(rank, rank, kh, kw) with kh and kw up to {_LARGEST_KERNEL}, and (rank, in, 1, 1). The file was badly "
            "converted: save it again."
        )
    return torch.einsum("mr...,ri->mi...", mid.float(), down.float()).to(down.dtype)
