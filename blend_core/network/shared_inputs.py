"""Layers that get one input tensor: their down-projections are one product.

q, k and v of an attention get the same tokens; the k and v of all attentions to a prompt get the same prompt. Which
layers may do so is read off the network; whether they do shows in every pass, by the tensor that they get. So a pass
takes the same products as any other, from the first one on. Where three or more of them have outputs of one width,
their up-projections are one product, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .add import weighted
from .low_rank import MOST_COLUMNS, Folded, LowRank
from .selection import Selection

MOST_ELEMENTS = 2**21
"""Of what one product adds. It is written and read once more than where every layer adds its own: four bytes an element
in half precision, which should take no longer than the launch that it saves. 8 MB are the 3 us of a launch at 3 TB per
second."""


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
        self.members = [member for run in runs for member in run]
        self.runs = runs
        self._run = {member: run for run in runs for member in run}
        counts = [member.columns for member in self.members]
        self._first = {member: sum(counts[:i]) for i, member in enumerate(self.members)}
        self._down: Tensor | None = None
        self._joint = False  # whether the members' own factors are parts of it
        self._folded = Folded()
        self._input: weakref.ref | None = None  # a layer that is never called must not keep it alive
        self._hidden: Tensor | None = None
        self._start = 0  # the column that `_hidden` begins with
        self._left: set[LowRank] = set()
        self._broken = False
        self._made: dict[LowRank, Tensor] = {}  # additions to the outputs of members that are left
        self._ups = joint_ups(runs)
        for member in self.members:
            member.shared = self

    def hidden(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        """The member's hidden vectors of x, (rows, ..., columns).

        Weighted where rows are of different variants; else those of the one variant alone, of its own rank.
        """
        whole = self._whole(member, x, selection)
        first, columns = self._first[member] - self._start, member.columns_of(selection)
        self._serve(member)
        return whole[..., first + columns.start : first + columns.stop]

    def addition(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor | None:
        """What the member's columns add for x, (tokens, out), where one product makes it for several members.

        None where the member's own product costs no more.
        """
        if (joint := self._ups.get(member)) is None or not joint.saves(x, selection):
            return None
        whole = self._whole(member, x, selection)
        if member not in self._made:
            block = joint.block(member, x, self._left)
            if not block:
                return None
            first = self._first[block[0]] - self._start
            hidden = whole.reshape(-1, whole.shape[-1])[:, first : first + len(block) * member.columns]
            hidden = hidden.unflatten(1, (len(block), member.columns))
            self._made |= joint.additions(block, hidden, member.columns_of(selection), x)
        made = self._made.pop(member)
        self._serve(member)
        return made

    def adds_at_once(self, members: Sequence[LowRank], x: Tensor, selection: Selection) -> bool:
        """Whether one product makes what the columns of all these members add for x, at one alpha."""
        first, *others = members
        if first.shared is not self or (selection.only is not None and selection.only not in first.variants):
            return False
        joint, alpha = self._ups.get(first), first.alpha_of(selection)
        if joint is None or alpha is None or not joint.saves(x, selection):
            return False
        return all(self._ups.get(other) is joint and other.alpha_of(selection) == alpha for other in others)

    def _whole(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        """The hidden vectors of all members that are projected with this one."""
        projected = self._input is not None and self._input() is x and member in self._left
        whole = self._hidden if projected else None
        return self._project(member, x, selection) if whole is None else whole

    def _serve(self, member: LowRank) -> None:
        self._left.discard(member)
        if not self._left:
            self._input = self._hidden = None

    def _project(self, member: LowRank, x: Tensor, selection: Selection) -> Tensor:
        self._broken |= self._input is not None
        run = self._run[member]
        members = run[run.index(member) :] if self._broken else self.members
        start = self._first[members[0]]
        end = self._first[members[-1]] + members[-1].columns
        down = self._joined(x)
        if selection.mixture is not None:
            down = self._folded.of(selection, down, lambda: self._weights(self.members, x, selection)[0])
        hidden = F.linear(x, down[start:end])
        if selection.only is None and selection.mixture is None:
            hidden = weighted(hidden, self._weights(members, x, selection), -1)
        self._input, self._hidden, self._start = weakref.ref(x), hidden, start
        self._left, self._made = set(members), {}
        return hidden

    def _weights(self, members: Sequence[LowRank], x: Tensor, selection: Selection) -> Tensor:
        return selection.joined(members, lambda layer: layer.weights(selection, x), x)

    def end(self) -> None:
        """After a pass: let go of the input, of what was made of it, and of a copy of the factors."""
        self._input = self._hidden = None
        self._left, self._made, self._broken = set(), {}, False
        if not self._joint:
            self._down = None
            self._folded.forget()
        for joint in self._ups.values():
            joint.end()

    def release(self) -> None:
        """After a run: let go of what was made of a mixture, too."""
        self._folded.forget()
        self.end()

    def part(self) -> None:
        """The same before a member's `down` is replaced."""
        self._joint = False
        self.release()
        for joint in self._ups.values():
            joint.part()

    def dissolve(self) -> None:
        """Let every member project its input by itself."""
        self.end()
        for member in self.members:
            member.shared = None

    def _joined(self, x: Tensor) -> Tensor:
        """All members' `down`, of which each keeps a part of one tensor where it lies there: no second copy."""
        if self._down is None or self._down.device != x.device or self._down.dtype != x.dtype:
            self._down = torch.cat([member.placed(x).down for member in self.members])
            self._joint = all((m.down.device, m.down.dtype) == (x.device, x.dtype) for m in self.members)
            for member in self.members if self._joint else ():
                member.down = self._down[self._first[member] : self._first[member] + member.columns]
                member.forget_place()
        return self._down


def joint_ups(runs: Sequence[Sequence[LowRank]]) -> dict[LowRank, JointUp]:
    """By layer. runs: layers of one parent each, in the order of their hidden vectors."""
    joint: dict[LowRank, JointUp] = {}
    places = {layer: place for place, run in enumerate(runs) for layer in run}
    for _, group in groupby(places, lambda layer: (len(layer.up), *layer.ranks)):
        layers = list(group)
        if len(layers) > 2:  # the products of two cost two launches either way
            joint |= dict.fromkeys(layers, JointUp([list(run) for _, run in groupby(layers, places.get)]))
    return joint


class JointUp:
    """runs: layers with outputs of one width and factors of one rank, next to each other in their hidden vectors."""

    def __init__(self, runs: Sequence[Sequence[LowRank]]):
        self._runs = runs
        self._run = {layer: place for place, run in enumerate(runs) for layer in run}
        self._layers = list(self._run)
        self._place = {layer: place for place, layer in enumerate(self._layers)}
        self._longest = max(map(len, runs))
        self._up: Tensor | None = None  # (layers, out, columns)
        self._joint = False  # whether the layers' own factors are parts of it

    def saves(self, x: Tensor, selection: Selection) -> bool:
        """Whether it launches less than layer by layer: with the kernel, a run alone does not."""
        runs = min(self._runs_at_once(x), len(self._runs))
        return runs > (2 if self._layers[0].takes_kernel(x, selection) else 0)

    def _runs_at_once(self, x: Tensor) -> int:
        elements = x.numel() // x.shape[-1] * len(self._layers[0].up) * self._longest
        return MOST_ELEMENTS // max(elements, 1)

    def block(self, layer: LowRank, x: Tensor, left: Set[LowRank]) -> list[LowRank]:
        """The layers, among those that are `left`, whose product is the layer's; none where it has one of its own."""
        count = self._runs_at_once(x)
        first = self._run[layer] // count * count
        block = [other for run in self._runs[first : first + count] for other in run if other in left]
        together = len(block) > 2 and self._place[block[-1]] - self._place[block[0]] == len(block) - 1
        return block if together else []

    def additions(
        self, block: Sequence[LowRank], hidden: Tensor, columns: slice, x: Tensor
    ) -> Mapping[LowRank, Tensor]:
        """(tokens, out) for each of the layers.  hidden: (tokens, layers, all columns), of which `columns` count."""
        start = self._place[block[0]]
        up = self._joined(x)[start : start + len(block), :, columns]
        made = torch.bmm(hidden[..., columns].transpose(0, 1), up.transpose(1, 2))
        return dict(zip(block, made, strict=True))

    def end(self) -> None:
        """After a pass: let go of a copy of the factors."""
        if not self._joint:
            self._up = None

    def part(self) -> None:
        """The same before a layer's `up` is replaced."""
        self._joint = False
        self.end()

    def _joined(self, x: Tensor) -> Tensor:
        """All layers' `up`, of which each keeps a part where it lies there: no second copy."""
        if self._up is None or self._up.device != x.device or self._up.dtype != x.dtype:
            self._up = torch.stack([layer.placed(x).up for layer in self._layers])
            self._joint = all((layer.up.device, layer.up.dtype) == (x.device, x.dtype) for layer in self._layers)
            for layer, up in zip(self._layers, self._up, strict=True) if self._joint else ():
                layer.up = up
                layer.forget_place()
        return self._up
