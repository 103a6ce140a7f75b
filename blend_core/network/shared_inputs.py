"""Layers that get one input tensor: their down-projections are one product.

q, k and v of an attention get the same tokens; the k and v of all attentions to a prompt get the same prompt. Which
layers may do so is read off the network; whether they do shows in every pass, by the tensor that they get. So a pass
takes the same products as any other, from the first one on.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BlendError
from .add import weighted
from .low_rank import MOST_COLUMNS, LowRank
from .selection import Selection


def shared_inputs(layers: Mapping[str, LowRank], modules: Mapping[str, nn.Module]) -> list[SharedInput]:
    """The groups of linear layers that may get one input. layers: by the names of their modules."""
    siblings: dict[tuple, list[LowRank]] = {}
    for name, layer in layers.items():
        if layer.down.dim() == 2 and layer.columns <= MOST_COLUMNS:
            key = (name.rpartition(".")[0], layer.down.shape[1], layer.variants)
            siblings.setdefault(key, []).append(layer)
    groups: dict[tuple, list[list[LowRank]]] = {}
    for (parent, width, variants), members in siblings.items():
        of_prompt = _widths(modules[parent]) - {width} and len(members) > 1  # k and v, and a q of another width
        key = (width, variants) if of_prompt else (parent, width, variants)
        groups.setdefault(key, []).append(members)
    return [SharedInput(runs) for runs in groups.values() if sum(map(len, runs)) > 1]


def _widths(module: nn.Module) -> set[int]:
    """The input widths of a module's own linear layers."""
    return {cast(nn.Linear, child).in_features for child in module.children() if hasattr(child, "in_features")}


class SharedInput:
    """runs: layers of one parent each. All have the same variants and the same width.

    The first layer that gets a tensor projects it for all, as long as nothing speaks against it: one of them that gets
    another tensor before all were served projects for its own run alone, and so does every run after it in the pass.
    """

    def __init__(self, runs: Sequence[Sequence[LowRank]]):
        self._members = [member for run in runs for member in run]
        self._run = {member: run for run in runs for member in run}
        counts = [member.columns for member in self._members]
        self._first = {member: sum(counts[:i]) for i, member in enumerate(self._members)}
        self._down: Tensor | None = None
        self._joint = False  # whether the members' own factors are parts of it
        self._input: weakref.ref | None = None  # a layer that is never called must not keep it alive
        self._hidden: Tensor | None = None
        self._start = 0  # the column that `_hidden` begins with
        self._left: set[LowRank] = set()
        self._broken = False
        self._checks: list[Tensor] | None = None  # None: inputs are not checked
        for member in self._members:
            member.shared = self

    def hidden(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        """The member's hidden vectors of x, (rows, ..., columns).

        Weighted where rows are of different variants; else those of the one variant alone, of its own rank.
        """
        projected = self._input is not None and self._input() is x and member in self._left
        whole = self._hidden if projected else None
        if whole is None:
            whole = self._project(member, x, selection)
        else:
            self._check(member, x, selection, whole)
        first, count = self._first[member] - self._start, member.columns
        if selection.only is not None:
            place = member.variants.index(selection.only)
            first, count = first + place * member.rank, member.ranks[place]
        hidden = whole[..., first : first + count]
        self._left.discard(member)
        if not self._left:
            self._input = self._hidden = None
        return hidden

    def _project(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        self._broken |= self._input is not None
        run = self._run[member]
        members = run[run.index(member) :] if self._broken else self._members
        start = self._first[members[0]]
        end = self._first[members[-1]] + members[-1].columns
        hidden = F.linear(x, self._joined(x)[start:end])
        if selection.only is None:
            hidden = weighted(hidden, selection.joined(members, lambda layer: layer.weights(selection, x), x), -1)
        self._input, self._hidden, self._start, self._left = weakref.ref(x), hidden, start, set(members)
        return hidden

    def begin(self, check: bool) -> None:
        """Before a pass. check: whether to look for a network that writes into an input between two layers."""
        self._checks = [] if check else None

    def _check(self, member: LowRank, x: Tensor, selection: Selection, whole: Tensor) -> None:
        if self._checks is None:
            return
        first = self._first[member] - self._start
        recomputed = F.linear(x, member.placed(x).down[:1])
        if selection.only is None:
            recomputed = weighted(recomputed, member.weights(selection, x)[:, :1], -1)
        shared = whole[..., first : first + 1]
        self._checks.append((recomputed - shared).float().norm() <= 0.1 * recomputed.float().norm())

    def checked(self) -> Tensor:
        """Whether every shared input stayed as it was, as one number on its device."""
        return torch.stack(self._checks).all() if self._checks else torch.tensor(True)

    def end(self) -> None:
        """After a pass: let go of the input, of what was made of it, and of a copy of the factors."""
        self._input = self._hidden = self._checks = None
        self._left, self._broken = set(), False
        if not self._joint:
            self._down = None

    def part(self) -> None:
        """The same before a member's `down` is replaced."""
        self._joint = False
        self.end()

    def dissolve(self) -> None:
        """Let every member project its input by itself."""
        self.end()
        for member in self._members:
            member.shared = None

    def _joined(self, x: Tensor) -> Tensor:
        """All members' `down`, of which each keeps a part of one tensor where it lies there: no second copy."""
        if self._down is None or self._down.device != x.device or self._down.dtype != x.dtype:
            self._down = torch.cat([member.placed(x).down for member in self._members])
            self._joint = all((m.down.device, m.down.dtype) == (x.device, x.dtype) for m in self._members)
            for member in self._members if self._joint else ():
                member.down = self._down[self._first[member] : self._first[member] + member.columns]
                member.forget_place()
        return self._down


def refuse_written_inputs(groups: Sequence[SharedInput]) -> None:
    """After a checked pass: raise BlendError where the network wrote into an input, and share none of its from now on.

    The pass was wrong; the next one is right.
    """
    kept = [group.checked() for group in groups]
    if kept and not bool(torch.stack([one.to(kept[-1].device) for one in kept]).all()):
        for group in groups:
            group.dissolve()
        raise BlendError(
            "this network writes into a tensor that several adapted layers read, so their products cannot be shared. "
            "Run it again: they no longer are."
        )
