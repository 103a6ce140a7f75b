"""The LoRA bank: one copy of the base weights, and every adapter as low-rank factors added in the forward pass.

    W_i x = W x + scale_i * up_i (down_i x)        for basis i; variant 0 is the base and adds nothing

What is no pair of factors (LoHa, LoKr, DoRA, whole differences) runs more slowly next to it: see changed.py.

A bank belongs to no host: `attach` finds its modules by name below any network, and only while `Attachment.using` is
open do those modules answer differently. No weight is ever written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..adapters import Change, Target
from ..errors import BlendError
from .changed import Changed
from .low_rank import LowRank
from .module_changes import ModuleChanges
from .private import CONVOLUTION, is_compiled
from .selection import Mixtures, Selection
from .shared_inputs import SharedInput, shared_inputs
from .siblings import JointOutputs, refuse_written_inputs
from .site import OWN, Parameters, Site

_MOST_SELECTIONS = 64  # of which the tensors are kept; a run with more choices makes some again


class LoRABank(nn.Module):
    """What m adapters change, by module.

    adapters: one mapping Target -> Change per basis, in the order of the blend; variant i + 1 is
    adapters[i].
    """

    def __init__(self, adapters: Sequence[Mapping[Target, Change]]):
        super().__init__()
        self.size = len(adapters)
        self._adapters = tuple(adapters)
        pieces: dict[str, dict[int, list[tuple[Target, Change]]]] = {}
        for variant, adapter in enumerate(adapters, start=1):
            for target, change in adapter.items():
                pieces.setdefault(target.module, {}).setdefault(variant, []).append((target, change))
        self.names = list(pieces)
        changes = [ModuleChanges(of_module) for of_module in pieces.values()]
        self.changes = cast(Sequence[ModuleChanges], nn.ModuleList(changes))
        self._attachments: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()

    def copied(self) -> LoRABank:
        """A bank of the same adapters for another device, as they were read."""
        return LoRABank(self._adapters)

    @property
    def nbytes(self) -> int:
        """Bytes that the factors take."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def low_rank(self) -> list[LowRank]:
        """The additions of plain LoRAs."""
        return [changes.low_rank for changes in self.changes if changes.low_rank is not None]

    @property
    def slow(self) -> list[Changed]:
        """The layers and parameters of the slower path; none for plain LoRAs."""
        return [changed for changes in self.changes for changed in changes.slow.values()]

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest difference that a pass builds and drops again; 0 for plain LoRAs."""
        return max((changed.transient_bytes for changed in self.slow), default=0)

    def release(self) -> None:
        """Let go of what runs left behind: factors in the dtype of a computation, and tensors of selections.

        A host that moves the factors off its device to make room does not know of these.
        """
        for low_rank in self.low_rank:
            low_rank.release()
        for attachment in self._attachments.values():
            attachment.release()

    def attach(
        self, network: nn.Module, dtype: torch.dtype | None = None, parameters: Parameters = OWN
    ) -> Attachment:
        """The handle that switches this bank on for calls of `network`, the same one while its modules are the same.

        dtype: of the network's computation; factors are then kept in it alone. Layers that compute in another get a
        copy.  parameters: how the host keeps the network's. It walks the network, to notice modules that were replaced
        since: call it once per run. Raises BlendError where the network lacks a module.
        """
        # torch.compile puts a module around the network, whose weights then lie one name deeper.
        named = dict(network.named_modules())
        modules = {f".{name}".replace("._orig_mod", "").removeprefix("."): module for name, module in named.items()}
        attachment = self._attachments.get(network)
        compiled = any("_orig_mod" in name for name in named)
        if attachment is None or not attachment.fits(modules):
            attachment = self._attachments[network] = Attachment(self, modules, parameters)
        if dtype is not None:
            for low_rank in self.low_rank:
                low_rank.keep_as(dtype)
        attachment.compiled |= compiled
        attachment.measure()
        return attachment


class Attachment:
    """A bank on one network. One thread at a time; other networks (other devices) have attachments of their own.

    compiled: whether torch.compile traces the network, so that passes of all choices take one graph; a host that
    compiles in a way of its own sets it.
    """

    def __init__(self, bank: LoRABank, modules: Mapping[str, nn.Module], parameters: Parameters):
        missing = [name for name in bank.names if name not in modules]
        if missing:
            raise BlendError(
                f"{len(missing)} of {len(bank.names)} adapted modules are not in this network "
                f"({', '.join(missing[:3])}). The LoRAs were matched with another model; match them with this one."
            )
        self._names, self._sites = bank.names, []
        for name, changes in zip(bank.names, bank.changes, strict=True):
            changes.arrange(read=not _is_layer(modules[name]))
            self._sites.append(Site(name, modules[name], changes, parameters))
        self._selections: dict[tuple[int, ...], Selection] = {}
        layers = {site.name: site.changes.low_rank for site in self._sites if site.changes.low_rank is not None}
        self._shared: list[SharedInput] = shared_inputs(layers, modules)
        self._joint = [JointOutputs(shared, self._sites) for shared in self._shared]
        self._checked: set[frozenset[int]] = set()  # sets of variants in whose passes inputs were looked at
        self.selection: Selection | None = None
        self._mixtures: Mixtures = {}
        self.compiled = any(map(is_compiled, modules.values()))

    def mix(self, mixtures: Mixtures) -> None:
        """Let these variants, which are none of the adapters', be several of them at once, at their coefficients."""
        self._mixtures = mixtures
        self._selections.clear()

    def measure(self) -> None:
        """Take the norms that DoRA needs, of the weights as they are now; begin to note what is used."""
        for site in self._sites:
            site.used.clear()
            site.read = False
            site.measure()

    def fits(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether the modules this handle was made for are still the ones of these names."""
        return all(modules.get(name) is site.module for name, site in zip(self._names, self._sites, strict=True))

    def unused(self, variant: int) -> list[str]:
        """The modules that this variant changes and that neither ran nor were read under it since `bank.attach`."""
        return [site.name for site in self._sites if variant in site.changes.variants and variant not in site.used]

    def read(self) -> list[str]:
        """The modules that changed through their parameters, which were read, since `bank.attach`."""
        return [site.name for site in self._sites if site.read]

    def release(self) -> None:
        """Let go of tensors that runs left behind."""
        self._selections.clear()
        for shared in self._shared:
            shared.release()

    @contextmanager
    def using(self, variants: Sequence[int], device: torch.device | None = None) -> Iterator[None]:
        """While open, row i of every call of the network is variant variants[i].

        Rows may stand several times each (frames of a video folded into the batch).  device: where the network
        computes, for parameters that lie elsewhere. Whatever happens inside, every module is put back as it was found.
        Raises BlendError when it is open already: a second layer of the same forwards would call itself, and could not
        be taken off again.
        """
        selection = self._selection_of(tuple(variants))
        active = selection.members - {0}
        whole = self.compiled and active
        sites = [site for site in self._sites if whole or not active.isdisjoint(site.changes.variants)]
        for site in sites if whole else ():
            if site.changes.low_rank is not None:
                site.changes.low_rank.weigh(selection)
        check = bool(active) and not whole and active not in self._checked
        try:
            for joint in self._joint:
                joint.begin(check)
            with self._installed(sites, selection, device):
                yield
            if check:
                self._checked.add(active)
                refuse_written_inputs(self._joint)
        finally:
            for joint in self._joint:
                joint.end()

    @contextmanager
    def _installed(self, sites: Sequence[Site], selection: Selection, device: torch.device | None) -> Iterator[None]:
        if self.selection is not None:
            raise BlendError(
                "this bank is in use on this network already. Leave the open `using` first; for another thread, attach "
                "to a copy of the network."
            )
        installed: list[Site] = []
        try:
            self.selection = selection
            for site in sites:
                site.install(selection, device)
                installed.append(site)
            yield
        finally:
            for site in reversed(installed):
                site.remove()
            self.selection = None

    @contextmanager
    def watching(self) -> Iterator[set[int]]:
        """While open, the network is the base, bit for bit, and every module is looked at.

        The set holds, afterwards, the variants that change a module which ran or was read, mixtures of these with them.
        Raises BlendError as `using` does.
        """
        variants: set[int] = set()
        with self._installed(self._sites, self._selection_of((0,)), None):
            yield variants
            variants.update(v for site in self._sites if site.touched for v in site.changes.variants)
            variants.update([v for v, mixture in self._mixtures.items() if not variants.isdisjoint(mixture)])

    def _selection_of(self, variants: tuple[int, ...]) -> Selection:
        if variants not in self._selections:
            if len(self._selections) >= _MOST_SELECTIONS:
                self._selections.clear()
            self._selections[variants] = Selection(variants, self._mixtures)
        return self._selections[variants]


def _is_layer(module: nn.Module) -> bool:
    """Whether the module's output is its weight's product with its input, plus a bias: what additions are made for."""
    if isinstance(module, CONVOLUTION):
        return module.groups == 1 and not module.transposed
    norm = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
    return norm or (hasattr(module, "in_features") and hasattr(module, "out_features"))
