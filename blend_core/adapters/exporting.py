"""One LoRA file out of several: their sum at given coefficients, as other loaders read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BlendError
from .adapter import METADATA_PREFIX
from .changes import Change, Delta, Factors
from .files import sha256
from .names.target import Target

Part = tuple[float, Target, Change]
"""A coefficient, and what it multiplies."""


@dataclass(frozen=True)
class Exported:
    """tensors: of the file, by its keys.  modules: how many it changes.  lost: the norm that a lower rank left out,
    over that of all changes."""

    tensors: dict[str, Tensor]
    modules: int
    lost: float


def exported(
    adapters: Sequence[Mapping[Target, Change]], coefficients: Sequence[float], rank: int | None = None
) -> Exported:
    """sum_i c_i * (what adapter i changes), by the host's own names of its modules.

    Pairs of factors are put next to each other, so that the sum is exact, at the sum of their ranks; a module that one
    of the adapters changes in another way gets the whole difference (`.diff`), its bias `.diff_b`.  rank: the most that
    a pair keeps, by its singular values; None: all. Raises BlendError for DoRA, whose change depends on the base.
    """
    parts: dict[tuple[str, str], list[Part]] = {}
    for coefficient, adapter in zip(coefficients, adapters, strict=True):
        for target, change in adapter.items() if coefficient != 0 else ():
            parts.setdefault((target.module, target.parameter), []).append((coefficient, target, change))
    tensors: dict[str, Tensor] = {}
    all_changes = lost = 0.0
    for (module, parameter), of_place in parts.items():
        pairs = [(c, target, pair) for c, target, change in of_place if (pair := change.factors) is not None]
        if parameter != "weight":
            tensors[f"{module}.{parameter}.diff"] = _difference(of_place)
        elif len(pairs) == len(of_place):
            down, up = _pair(pairs)
            all_changes += _squared_norm(down, up) if rank else 0
            if rank and down.shape[0] > rank:
                down, up, squares = _cut(down, up, rank)
                lost += float(squares[rank:].sum())
            tensors[f"{module}.lora_down.weight"] = down
            tensors[f"{module}.lora_up.weight"] = up.view(*up.shape, *[1] * (down.dim() - 2))
            tensors[f"{module}.alpha"] = torch.tensor(float(down.shape[0]))  # divided by the rank: a scale of 1
        else:
            tensors |= _differences(module, of_place)
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    differences = (tensor for key, tensor in whole.items() if key.endswith((".diff", ".diff_b")))
    all_changes += sum(float(tensor.double().square().sum()) for tensor in differences)
    return Exported(whole, len({module for module, _ in parts}), (lost / (all_changes or 1)) ** 0.5)


def provenance(names: Sequence[str], paths: Sequence[str | Path], coefficients: Sequence[float]) -> dict[str, str]:
    """A header that says what `parts_of` does."""
    return {METADATA_PREFIX + "parts": json.dumps(parts_of(names, paths, coefficients))}


def parts_of(
    names: Sequence[str], paths: Sequence[str | Path], coefficients: Sequence[float]
) -> list[dict[str, str | float]]:
    """Of each LoRA its name, file, coefficient and, where the file is there, SHA-256."""
    parts = []
    for name, path, coefficient in zip(names, map(Path, paths), coefficients, strict=True):
        digest = {"sha256": sha256(path)} if path.is_file() else {}
        parts.append({"name": name, "file": path.name, "coefficient": coefficient, **digest})
    return parts


def _differences(module: str, parts: Sequence[Part]) -> dict[str, Tensor]:
    """The whole difference of a layer's weight, and that of its bias, where there are such."""
    tensors = {}
    weights = [part for part in parts if _delta(part) is not None]
    if weights:
        tensors[f"{module}.diff"] = _difference(weights)
    biases = [
        (coefficient, target.rows, change.bias.float())
        for coefficient, target, change in parts
        if change.bias is not None
    ]
    if biases:
        whole = parts[0][1].shape[0]
        total = torch.zeros(max(len(bias) if rows is None else whole for _, rows, bias in biases))
        for coefficient, rows, bias in biases:
            first = 0 if rows is None else rows[0]
            total[first : first + len(bias)] += coefficient * bias
        tensors[f"{module}.diff_b"] = total
    return tensors


def _difference(parts: Sequence[Part]) -> Tensor:
    """The sum of whole differences, in the shape of the parameter."""
    shape = parts[0][1].shape
    total = torch.zeros(shape or (1,))
    for part in parts:
        coefficient, target, _ = part
        if (delta := _delta(part)) is not None:
            first, last = target.span
            total[first:last] += coefficient * _whole(target, delta).view(total[first:last].shape)
    return total.view(shape)


def _delta(part: Part) -> Factors | Delta | None:
    """What the part adds to the weight. Raises BlendError for DoRA."""
    _, target, change = part
    if change.magnitude is not None:
        raise BlendError(
            f"{target.module}: DoRA came, whose change depends on the weights it is put on, so that it has no "
            "place in a file of sums. Leave that LoRA out, or use the blend itself."
        )
    return change.delta


def _whole(target: Target, delta: Factors | Delta) -> Tensor:
    tensors = {name: tensor.float() for name, tensor in delta.tensors.items()}
    return delta.built((target.height, *target.shape[1:]), tensors)


def _pair(parts: Sequence[tuple[float, Target, Factors]]) -> tuple[Tensor, Tensor]:
    """(down, up) of the sum of pairs; a pair on some rows has zeros in the others."""
    downs, ups = [], []
    for coefficient, target, factors in parts:
        first, last = target.span
        up = torch.zeros(target.shape[0], factors.rank)
        up[first:last] = factors.up.float() * (coefficient * factors.scale)
        downs.append(factors.down.float())
        ups.append(up)
    return torch.cat(downs), torch.cat(ups, 1)


def _cut(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest pair of this rank, and the squares of all singular values of up @ down."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().flatten(1).T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T)
    roots = values[:rank].sqrt()
    low_up = (q_up @ u[:, :rank]) * roots
    low_down = ((q_down @ v[:rank].T) * roots).T
    return low_down.float().view(-1, *down.shape[1:]), low_up.float(), values**2


def _squared_norm(down: Tensor, up: Tensor) -> float:
    """Of up @ down, without building it."""
    flat = down.double().flatten(1)
    return float(((up.double().T @ up.double()) * (flat @ flat.T)).sum())
