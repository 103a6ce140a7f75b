"""The host's side: its weights by every name they go by, and the lookup of a file's module path among them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import BlendError
from .families import family_of
from .renames import other_names
from .spelling import canonical


@dataclass(frozen=True)
class Target:
    """Where a change goes: a module's weight or another parameter of it, or some of its output rows.

    module: path of the nn.Module in the host network.  shape: of that module's whole weight, (out, in[, kh, kw]).
    rows: (offset, length) in output rows, for a slice of a fused weight.
    swap_halves: the host keeps the two halves of its rows in the other order (scale and shift of SD3's and Flux's
    norm_out). `resolve` acts on it and returns targets without it.
    parameter: the attribute of the module that is changed; its shape is `shape`. A change of a layer's weight carries
    that of its bias with it.
    """

    module: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    swap_halves: bool = False
    parameter: str = "weight"

    @property
    def height(self) -> int:
        """Output rows this target covers."""
        return self.rows[1] if self.rows else self.shape[0]

    @property
    def span(self) -> tuple[int, int]:
        """(first, last + 1) of the rows it covers in the module's weight."""
        offset, length = self.rows or (0, self.shape[0])
        return offset, offset + length


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
        """The model family these names look like, for messages."""
        return family_of({name: target.shape[1] for name, target in self._targets.items() if len(target.shape) > 1})

    def find(self, module_path: str) -> tuple[Target, ...]:
        """The targets of a module path; empty when nothing matches.

        Several when the file has one fused weight where the host has separate ones: the rows of the file's `up`
        then belong to the targets one after the other.
        """
        name = canonical(module_path)
        direct = self._get(name)
        if direct is not None:
            return (direct,)
        for names, swap in other_names(name):
            found = [self._get(other) for other in names]
            if all(target is not None for target in found):
                return tuple(replace(target, swap_halves=target.swap_halves != swap) for target in found)
        return ()

    def bias_of(self, target: Target) -> Target | None:
        """The bias of a target's layer; None where the layer has none, or it is not known."""
        bias = self._targets.get(canonical(f"{target.module}.bias"))
        return bias if bias is not None and (bias.module, bias.parameter) == (target.module, "bias") else None

    def _get(self, name: str) -> Target | None:
        known = self._targets.get(name)
        if known is not None or not name.endswith("_linear1_qkv"):
            return known
        # Flux's single blocks fuse q, k, v and the MLP in linear1; older hosts have no name for the first three.
        whole = self._targets.get(name.removesuffix("_qkv"))
        return whole and replace(whole, rows=(0, 3 * whole.shape[1]))
