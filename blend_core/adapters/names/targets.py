"""The host's side: its weights by every name they go by, and the lookup of a file's module path among them."""

from collections.abc import Iterable, Mapping
from functools import cached_property

from ...errors import BlendError
from .architectures import ARCHITECTURES, Architecture
from .families import family_of
from .renames import Names, diffusers_names, native_name, native_names, unet_name
from .spelling import canonical
from .target import Target


class TargetIndex:
    """Targets of one host network, found by any spelling of a module path."""

    def __init__(self, aliases: Mapping[str, Target], parameters: Mapping[str, Target] | None = None, family: str = ""):
        """aliases: the names in the host's own key map, or its module paths. Two targets of one name raise.

        parameters: what else can be changed than the weights of layers, by path; a layer of the same name comes first.
        family: what the host calls the architecture.
        """
        self._called = family
        self._targets: dict[str, Target] = {}
        for alias, target in aliases.items():
            known = self._targets.setdefault(canonical(alias), target)
            if known != target:
                raise BlendError(
                    f"the host's names {canonical(alias)!r} mean both {known} and {target}. "
                    "This is a fault in the host's key map: report it with the model's name."
                )
        for name, target in (parameters or {}).items():
            self._targets.setdefault(canonical(name), target)

    def __len__(self) -> int:
        return len(self._targets)

    @cached_property
    def family(self) -> str:
        """The architecture, for messages: what the host calls it, else what its names look like."""
        widths = {name: target.shape[1] for name, target in self._targets.items() if len(target.shape) > 1}
        return self._called or family_of(widths)

    @cached_property
    def _architecture(self) -> Architecture | None:
        """The family whose original names the host has; None of a host of diffusers."""
        names = Names(self._targets)
        return next((architecture for architecture in ARCHITECTURES if names.bear(architecture.native)), None)

    @cached_property
    def _aliases(self) -> dict[str, tuple[Target, ...]]:
        """Names of other code bases. A host of diffusers may bear those of several families."""
        if self._architecture is not None:
            return diffusers_names(self._architecture.renames, self._targets)
        names = Names(self._targets)
        fitting = [table for table in ARCHITECTURES if not table.diffusers or names.bear(table.diffusers)]
        return native_names([rename for table in fitting for rename in table.renames], self._targets)

    def head_size(self, target: Target) -> int | None:
        """Channels of a head of a fused weight whose rows the original code trains head by head; None of others."""
        fused, norm = (self._architecture and self._architecture.per_head) or ("", "")
        name = canonical(target.module)
        if not fused or not name.endswith(fused) or target.rows is not None:
            return None
        return self._targets[name.removesuffix(fused) + norm].shape[0]

    def find(self, module_path: str, foreign: bool = False) -> tuple[Target, ...]:
        """The targets of a module path; empty when nothing matches.

        Several when the file has one fused weight where the host has separate ones: the rows of the file's `up`
        then belong to the targets one after the other.  foreign: the path is of another code base than the host's,
        which matters where both have a name and mean different weights (see `is_foreign`).
        """
        name = native_name(canonical(module_path))
        if foreign and name in self._aliases:
            return self._aliases[name]
        if name in self._targets:
            return (self._targets[name],)
        if name in self._aliases:
            return self._aliases[name]
        other = unet_name(name)
        return (self._targets[other],) if other in self._targets else ()

    def is_foreign(self, module_paths: Iterable[str]) -> bool:
        """Whether these paths are of another code base: one of them is a name that the host does not have itself."""
        names = {native_name(canonical(path)) for path in module_paths}
        return any(name in self._aliases and name not in self._targets for name in names)

    def bias_of(self, target: Target) -> Target | None:
        """The bias of a target's layer; None where the layer has none, or it is not known."""
        bias = self._targets.get(canonical(f"{target.module}.bias"))
        return bias if bias is not None and (bias.module, bias.parameter) == (target.module, "bias") else None
