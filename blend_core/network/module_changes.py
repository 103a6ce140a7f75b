"""What all variants change of one module, by the way the changes take: through its output or its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from ..adapters import Change, Factors, Target
from ..adapters.changes import difference
from .changed import Changed, Gains
from .low_rank import LowRank


class ModuleChanges(nn.Module):
    """What all variants change of one module, by the way they take.

    low_rank, changed: of the weight, and the bias, of a layer whose output is linear in them.  by_parameter: of any
    other parameter, by its name, which is only ever read.
    """

    def __init__(self, pieces: Mapping[int, Sequence[tuple[Target, Change]]]):
        super().__init__()
        self._pieces = {variant: tuple(of_variant) for variant, of_variant in pieces.items()}
        self.arrange(read=False)

    def arrange(self, read: bool) -> None:
        """Decide which way the changes take; read: all by the parameter, for a module of no kind that is known."""
        self.read = read
        by_name: dict[str, dict[int, list]] = {}
        for variant, of_variant in self._pieces.items():
            for piece in of_variant:
                for target, change in _parts(*piece) if read else [piece]:
                    by_name.setdefault(target.parameter, {}).setdefault(variant, []).append((target, change))
        weight = {} if read else by_name.pop("weight", {})
        plain = {v: pairs for v, pieces in weight.items() if (pairs := _pairs(pieces)) is not None}
        rest = {v: pairs for v, pairs in weight.items() if v not in plain}
        self.low_rank = LowRank(plain) if plain else None
        self.changed = Changed(rest) if rest else None
        by_parameter = nn.ModuleDict({name: Changed(changes) for name, changes in by_name.items()})
        self.by_parameter = cast(Mapping[str, Changed], by_parameter)

    @property
    def variants(self) -> frozenset[int]:
        """Those that change the module."""
        return frozenset(self._pieces)

    @property
    def by_output(self) -> bool:
        """Whether the module's output is changed, and not its parameters alone."""
        return self.low_rank is not None or self.changed is not None

    @property
    def by_additions(self) -> bool:
        """Whether plain additions to the output are all."""
        return self.low_rank is not None and self.changed is None and not self.by_parameter

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change."""
        return (*(("weight", "bias") if self.by_output else ()), *self.by_parameter)

    @property
    def slow(self) -> dict[str, Changed]:
        """What runs on the slower path, by the parameter it changes."""
        return {**({} if self.changed is None else {"weight": self.changed}), **self.by_parameter}

    def value(self, variant: int, name: str, value: Tensor, gains: Mapping[str, Gains]) -> Tensor:
        """A parameter as the variant has it, in float32; value: as the base has it."""
        if name in self.by_parameter:
            changed = self.by_parameter[name]
            return changed.weight(variant, value, gains[name]) if variant in changed.variants else value
        if self.changed is not None and variant in self.changed.variants:
            if name == "bias":
                return self.changed.bias(variant, value)
            return self.changed.weight(variant, value, gains["weight"])
        if name == "weight" and self.low_rank is not None and variant in self.low_rank.variants:
            return value + self.low_rank.difference(variant, value.shape, value.device)
        return value


def _pairs(pieces: Sequence[tuple[Target, Change]]) -> list[tuple[Target, Factors]] | None:
    """The pieces as pairs of factors; None where one is more than that."""
    pairs = [(target, change.factors) for target, change in pieces]
    return None if any(factors is None for _, factors in pairs) else cast(list[tuple[Target, Factors]], pairs)


def _parts(target: Target, change: Change) -> Iterator[tuple[Target, Change]]:
    """A change of a weight, and that of the bias which comes with it."""
    if change.bias is None:
        yield target, change
        return
    bias = change.bias
    length = len(bias) if target.rows is None else target.shape[0]
    yield replace(target, shape=(length,), parameter="bias"), Change(difference({"diff": bias}))
    if change.delta is not None or change.magnitude is not None:
        yield target, replace(change, bias=None)
