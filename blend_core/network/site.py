"""One module of a network while a variant is in use: its forward and its parameters.

A module's output gets the variant's addition; whoever reads a parameter of it without calling it (a norm fused with the
rotary embedding, a product of eight-bit numbers) finds the parameter as the variant has it. Both ways are open at once,
so that it does not matter which of them a network takes.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Change, Factors, Target
from ..adapters.changes import difference
from ..errors import BlendError
from .changed import Changed, Gains
from .deferred import Deferred
from .low_rank import LowRank, precise
from .private import places_of_attributes
from .selection import Selection

_STACK = "_diffusion_blend_sites"  # what is ours in a module's dictionary while its parameters are replaced


@dataclass(frozen=True)
class Parameters:
    """How a host keeps a network's parameters.

    read(module, name, device): one as the module computes with it, patches included, on `device`; None where there is
    none.  emptied: attributes of a module which say what the host still does to a parameter; empty to a reader of a
    changed one, in which it was done.
    """

    read: Callable[[nn.Module, str, torch.device], Tensor | None]
    emptied: tuple[str, ...] = ()


def stored(module: nn.Module, name: str, device: torch.device) -> Tensor | None:
    """A parameter as numbers, (out, in, ...), whatever it is stored as; None where there is none.

    A linear layer whose weight is packed in a way of its own tells it by its output for unit vectors.
    """
    value = getattr(module, name, None)
    if isinstance(value, Deferred):  # of another bank below
        value = value.values()
    if value is None:
        return None
    if value.is_floating_point() and type(value).dequantize is Tensor.dequantize:
        return value.to(device)
    if name != "weight" or not hasattr(module, "in_features"):
        return value.dequantize().to(device)
    width = module.in_features
    zero, *columns = (
        module(x) for x in (torch.zeros(1, width, device=device), *torch.eye(width, device=device).split(256))
    )
    return (torch.cat(columns) - zero).t().contiguous()


OWN = Parameters(stored)
"""A host that keeps them as they are."""


_thread = threading.local()


@contextmanager
def as_stored() -> Iterator[None]:
    """While open, this thread reads parameters as they are stored: for a host that moves weights."""
    before, _thread.as_stored = getattr(_thread, "as_stored", False), True
    try:
        yield
    finally:
        _thread.as_stored = before


class ModuleChanges(nn.Module):
    """What all variants change of one module, by the way they take.

    low_rank, changed: of the weight, and the bias, of a layer whose output is linear in them.  by_parameter: of any
    other parameter, by its name, which is only ever read.
    """

    def __init__(self, pieces: Mapping[int, Sequence[tuple[Target, Factors | Change]]]):
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
        plain = {v: own for v, own in weight.items() if all(isinstance(change, Factors) for _, change in own)}
        rest = {v: own for v, own in weight.items() if v not in plain}
        self.low_rank = LowRank(plain) if plain else None
        self.changed = Changed(rest) if rest else None
        self.by_parameter = nn.ModuleDict({name: Changed(changes) for name, changes in by_name.items()})

    @property
    def variants(self) -> frozenset[int]:
        """Those that change the module."""
        return frozenset(self._pieces)

    @property
    def by_output(self) -> bool:
        """Whether the module's output is changed, and not its parameters alone."""
        return self.low_rank is not None or self.changed is not None

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


def _parts(target: Target, change: Factors | Change) -> Iterator[tuple[Target, Factors | Change]]:
    """A change of a weight, and that of the bias which comes with it."""
    bias = None if isinstance(change, Factors) else change.bias
    if bias is None:
        yield target, change
        return
    length = len(bias) if target.rows is None else target.shape[0]
    yield replace(target, shape=(length,), parameter="bias"), Change(difference({"diff": bias}))
    if change.delta is not None or change.magnitude is not None:
        yield target, replace(change, bias=None)


class Site:
    """The changes of one module of one network.

    used: variants under which the module ran, or a parameter of it was read.  touched: whether either happened since
    `install`.  read: whether a parameter of it was read.
    """

    def __init__(self, name: str, module: nn.Module, changes: ModuleChanges, parameters: Parameters):
        self.name, self.module, self.changes = name, module, changes
        self.selection: Selection | None = None
        self.device: torch.device | None = None  # of the pass, where it is known
        self.used: set[int] = set()
        self.names = frozenset((*changes.names, *parameters.emptied))
        self._parameters = parameters
        self._gains: dict[str, Gains] = {}
        self._running = self._reading = 0  # the module's own forward; the host, for us
        self.touched = self.read = False
        self._original: Callable | None = None
        self._had_own = False

        def forward(x, *args, **kwargs):  # one function object for ever, so that torch.compile traces it once
            out = self._inner(x, *args, **kwargs)
            return out if self._reading else self._added(out, x, args, kwargs)

        self._forward = forward

    def measure(self) -> None:
        """Take the norms that DoRA needs, of the weights as they are now: other patches may have changed them."""
        for name, changed in self.changes.slow.items():
            weight = None
            if changed.needs_weight:
                weight = precise(self._read(name, next(changed.buffers()).device))
            self._gains[name] = changed.gains(weight)

    # --- the module's output

    def _inner(self, x: Tensor, *args, **kwargs) -> Tensor:
        self._running += 1
        try:
            return self._original(x, *args, **kwargs)
        finally:
            self._running -= 1

    def _added(self, out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        self.touched, changes = True, self.changes
        if changes.changed is not None:
            out = self._slowly(out, x, args, kwargs)
        if changes.low_rank is not None:
            compiled = torch.compiler.is_compiling() and changes.low_rank.row_weights is not None
            add = changes.low_rank.add_compiled if compiled else changes.low_rank.add
            out = add(out, x, self.selection, self.module)
        return out

    def _slowly(self, out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        def again(other: Tensor) -> Tensor:
            return self._inner(other, *args, **kwargs)

        self._reading += 1  # the changes look at the module's own bias
        try:
            changed, gains = self.changes.changed, self._gains["weight"]
            return changed.add(out, x, self.selection, self.module, gains, again)
        finally:
            self._reading -= 1

    # --- the module's parameters

    def value(self, name: str, below: Callable[[], Any]) -> Any:
        """What a reader of an attribute gets; below(): what there is without this site."""
        within = self._reading or (self._running and name not in self.changes.by_parameter)
        if within or name not in self.names or getattr(_thread, "as_stored", False):
            return below()
        if name in self._parameters.emptied:
            return []
        parameter = below()
        if not isinstance(parameter, Tensor):
            return parameter
        device = self.device or parameter.device
        return Deferred(lambda: self._changed(name, device), parameter, device)

    def _changed(self, name: str, device: torch.device) -> Tensor:
        """A parameter as the variant of the pass has it, or a mixture. Raises BlendError in a pass of several."""
        selection = self.selection
        shares = {selection.only: 1.0} if selection.only is not None else selection.mixture
        if shares is None:
            raise BlendError(
                f"{self.name}.{name} is read without its layer, so a pass of several rewards cannot have one of each. "
                "Choose the sequential execution."
            )
        self.touched = self.read = True
        value = self._read(name, device)
        base = precise(value)
        changes = [
            coefficient * (self.changes.value(variant, name, base, self._gains) - base)
            for variant, coefficient in shares.items()
        ]
        return sum(changes, base).to(value.dtype)

    def _read(self, name: str, device: torch.device) -> Tensor:
        self._reading += 1
        try:
            return self._parameters.read(self.module, name, device)
        finally:
            self._reading -= 1

    # --- in use

    def install(self, selection: Selection, device: torch.device | None) -> None:
        """Replace what the module is asked for."""
        self.selection, self.device, self.touched = selection, device, False
        if self.changes.by_output:
            own = self.module.__dict__
            self._had_own = "forward" in own  # another pack's replaced forward: keep it below ours and put it back
            self._original = self.module.forward
            own["forward"] = self._forward
        _push(self)

    def remove(self) -> None:
        """Put back what was there."""
        if self.touched:
            self.used.update(self.selection.members)
        _pop(self)
        if self.changes.by_output:
            if self._had_own:
                self.module.__dict__["forward"] = self._original
            else:
                del self.module.__dict__["forward"]
            self._original = None
        self.selection = None


@dataclass
class _Stack:
    """The sites of one module in use, the last one outermost, and the module's own class."""

    kind: type
    sites: list[Site] = field(default_factory=list)

    def value(self, module: nn.Module, name: str, depth: int) -> Any:
        """An attribute as the first `depth` sites make it."""
        if depth == 0:
            return _stored(module, name, self.kind)
        return self.sites[depth - 1].value(name, lambda: self.value(module, name, depth - 1))


def _push(site: Site) -> None:
    own = site.module.__dict__
    if _STACK not in own:
        own[_STACK] = _Stack(type(site.module))
    own[_STACK].sites.append(site)
    _reclass(site.module, own[_STACK])


def _pop(site: Site) -> None:
    stack = site.module.__dict__[_STACK]
    stack.sites.remove(site)
    _reclass(site.module, stack)
    if not stack.sites:
        del site.module.__dict__[_STACK]


def _reclass(module: nn.Module, stack: _Stack) -> None:
    names = frozenset().union(*(site.names for site in stack.sites))
    module.__class__ = _reading(stack.kind, names) if names else stack.kind


@cache
def _reading(kind: type, names: frozenset[str]) -> type:
    """A class like `kind` whose instances' attributes of these names come from their sites."""

    def attribute(name: str) -> property:
        def read(module: nn.Module) -> Any:
            stack = module.__dict__[_STACK]
            return stack.value(module, name, len(stack.sites))

        def write(module: nn.Module, value: Any) -> None:
            module.__dict__[name] = value

        return property(read, write)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **{name: attribute(name) for name in names}})


def _stored(module: nn.Module, name: str, kind: type) -> Any:
    """What a module has under a name, without our class. Raises AttributeError where it has nothing."""
    for place in places_of_attributes(module):
        if name in place:
            return place[name]
    found = inspect.getattr_static(kind, name)
    return found.__get__(module, kind) if hasattr(found, "__get__") else found
