"""Layers of one parent that get one input: the first of them that is called computes the outputs of all.

What one product has made for q, k and v is then added in one launch. A layer's output depends on its input alone, and
it does not matter when it is computed. Which layers get one input shows in a network's first pass, whose numbers are
those of any other; a layer that gets another input later computes its own output, and so do its siblings from then on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..errors import BlendError
from .add import add_made, is_fresh
from .private import add_to_all
from .selection import Selection
from .shared_inputs import SharedInput
from .site import Site


class JointOutputs:
    """The sites of a SharedInput: sees which of them get one input, and whether a network writes into it in between."""

    def __init__(self, shared: SharedInput, sites: Iterable[Site]):
        self._shared = shared
        self._sites = {site.changes.low_rank: site for site in sites if site.changes.low_rank in shared.members}
        self._siblings: dict[Site, Siblings] | None = None  # None: no pass has shown them
        self._numbers: dict[Site, int] = {}  # of the tensor that a site got
        self._number = 0
        self._last: weakref.ref | None = None
        self._sum: Tensor | None = None
        self._checks: list[Tensor] | None = None  # None: this pass looks at no input
        for site in self._sites.values():
            site.joint = self

    def begin(self, check: bool) -> None:
        """Before a pass. check: whether to look at inputs."""
        self._checks = [] if check else None

    def output(self, site: Site, x: Tensor) -> Tensor | None:
        """The site's output for x with its addition; None where the site has to compute it."""
        if self._checks is not None:
            self._look(site, x, self._checks)
            return None
        siblings = (self._siblings or {}).get(site)
        return None if siblings is None else siblings.output(site, x)

    def _look(self, site: Site, x: Tensor, checks: list[Tensor]) -> None:
        total = x.sum(dtype=torch.float32)
        if self._last is not None and self._last() is x:
            checks.append((total == self._sum) | total.isnan())
        else:
            self._last, self._sum = weakref.ref(x), total
            self._number += 1
        self._numbers[site] = self._number

    def checked(self) -> Tensor:
        """Whether every shared input stayed as it was, as one number on its device."""
        return torch.stack(self._checks).all() if self._checks else torch.tensor(True)

    def end(self) -> None:
        """After a pass."""
        if self._checks is not None and self._siblings is None:
            self._siblings = self._shown()
        self._last = self._sum = self._checks = None
        for siblings in set((self._siblings or {}).values()):
            siblings.end()
        self._shared.end()

    def _shown(self) -> dict[Site, Siblings]:
        """Siblings by site, as a pass has shown them."""
        made: dict[Site, Siblings] = {}
        for run in self._shared.runs:
            sites = [self._sites[layer] for layer in run]
            for number, group in groupby(sites, self._numbers.get):
                together = [site for site in group if site.changes.by_additions]
                if number is not None and len(together) > 1:
                    made |= dict.fromkeys(together, Siblings(self._shared, together))
        return made

    def dissolve(self) -> None:
        """Let every site compute its own output, and project its input by itself."""
        self._siblings = {}
        self._shared.dissolve()


class Siblings:
    """Sites of one parent that get one input and change by additions alone."""

    def __init__(self, shared: SharedInput, sites: Sequence[Site]):
        self._shared, self._sites = shared, sites
        self._layers = [site.changes.low_rank for site in sites if site.changes.low_rank is not None]
        self._input: weakref.ref | None = None
        self._outputs: dict[Site, Tensor] = {}
        self._apart = False

    def output(self, site: Site, x: Tensor) -> Tensor | None:
        """The site's output for x with its addition; None where the site has to compute it."""
        if not self._outputs:
            if not self._apart and self._shared.adds_at_once(self._layers, x, site.selection):
                self._compute(x, site.selection)
        elif self._input is None or self._input() is not x:
            self._apart, self._outputs = True, {}
        return self._outputs.pop(site, None)

    def end(self) -> None:
        """After a pass: let go of what it left."""
        self._input, self._outputs = None, {}

    def _compute(self, x: Tensor, selection: Selection) -> None:
        outputs = [site.inner(x) for site in self._sites]
        made = [self._shared.addition(layer, x, selection) for layer in self._layers]
        alpha = self._layers[0].alpha_of(selection) or 0.0
        tensors = [one.view(out.shape) for one, out in zip(made, outputs, strict=True) if one is not None]
        if len(tensors) == len(outputs) and all(is_fresh(out, x) for out in outputs):
            add_to_all(outputs, tensors, alpha)
        else:
            parts = zip(self._sites, self._layers, outputs, made, strict=True)
            outputs = [
                layer.add(out, x, selection, site.module) if one is None else add_made(out, x, one, alpha)
                for site, layer, out, one in parts
            ]
        self._input, self._outputs = weakref.ref(x), dict(zip(self._sites, outputs, strict=True))


def refuse_written_inputs(groups: Sequence[JointOutputs]) -> None:
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
