"""One module of a network while a variant is in use: its forward and its parameters.

A module's output gets the variant's addition; whoever reads a parameter of it without calling it (a norm fused with the
rotary embedding, a product of eight-bit numbers) finds the parameter as the variant has it. Both ways are open at once,
so that it does not matter which of them a network takes.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import BlendError
from .changed import Changed, Gains
from .deferred import Deferred
from .low_rank import precise
from .module_changes import ModuleChanges
from .private import places_of_attributes
from .selection import Selection


class Joint(Protocol):
    """What computes the outputs of several layers at once; see siblings.py."""

    def output(self, site: Site, x: Tensor) -> Tensor | None:
        """The site's output for x with its addition; None where the site has to compute it."""
        ...


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
    width = cast(nn.Linear, module).in_features
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


class Site:
    """The changes of one module of one network.

    used: variants under which the module ran, or a parameter of it was read.  touched: whether either happened since
    `install`.  read: whether a parameter of it was read.
    """

    selection: Selection  # while it is installed, as the next one
    _original: Callable[..., Tensor]

    def __init__(self, name: str, module: nn.Module, changes: ModuleChanges, parameters: Parameters):
        self.name, self.module, self.changes = name, module, changes
        self.device: torch.device | None = None  # of the pass, where it is known
        self.used: set[int] = set()
        self.names = frozenset((*changes.names, *parameters.emptied))
        self._parameters = parameters
        self._gains: dict[str, Gains] = {}
        self._running = self._reading = 0  # the module's own forward; the host, for us
        self.touched = self.read = False
        self._had_own = False
        self.joint: Joint | None = None

        def forward(x, *args, **kwargs):  # one function object for ever, so that torch.compile traces it once
            plain = not (args or kwargs or self._reading or torch.compiler.is_compiling())
            if plain and self.joint is not None and (out := self.joint.output(self, x)) is not None:
                self.touched = True
                return out
            out = self.inner(x, *args, **kwargs)
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

    def inner(self, x: Tensor, *args, **kwargs) -> Tensor:
        """The output without the changes."""
        self._running += 1
        try:
            return self._original(x, *args, **kwargs)
        finally:
            self._running -= 1

    def _added(self, out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        self.touched, changes = True, self.changes
        if changes.changed is not None:
            out = self._slowly(changes.changed, out, x, args, kwargs)
        if changes.low_rank is not None:
            weights = changes.low_rank.row_weights if torch.compiler.is_compiling() else None
            if weights is not None:
                return changes.low_rank.add_compiled(out, x, self.selection, self.module, weights)
            out = changes.low_rank.add(out, x, self.selection, self.module)
        return out

    def _slowly(self, changed: Changed, out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        def again(other: Tensor) -> Tensor:
            return self.inner(other, *args, **kwargs)

        self._reading += 1  # the changes look at the module's own bias
        try:
            return changed.add(out, x, self.selection, self.module, self._gains["weight"], again)
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
            value = self._parameters.read(self.module, name, device)
        finally:
            self._reading -= 1
        if value is None:
            raise BlendError(
                f"{self.name} has no {name} in this network, which a LoRA changes. The LoRA was matched with another "
                "model; match it with this one."
            )
        return value

    # --- in use

    def install(self, selection: Selection, device: torch.device | None) -> None:
        """Replace what the module is asked for."""
        self.selection, self.device, self.touched = selection, device, False
        if self.changes.by_output:
            attributes = self.module.__dict__
            # Another pack's replaced forward is kept below ours and put back.
            self._had_own = "forward" in attributes
            self._original = self.module.forward
            attributes["forward"] = self._forward
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
            del self._original
        del self.selection


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
    attributes = site.module.__dict__
    if _STACK not in attributes:
        attributes[_STACK] = _Stack(type(site.module))
    attributes[_STACK].sites.append(site)
    _reclass(site.module, attributes[_STACK])


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
    static = inspect.getattr_static(kind, name)
    return static.__get__(module, kind) if hasattr(static, "__get__") else static
