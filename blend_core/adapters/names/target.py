"""Where a change goes."""

from dataclasses import dataclass


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
        """Output rows this target covers; one of a single number."""
        return self.rows[1] if self.rows else (*self.shape, 1)[0]

    @property
    def span(self) -> tuple[int, int]:
        """(first, last + 1) of the rows it covers in the module's weight."""
        offset, length = self.rows or (0, self.height)
        return offset, offset + length
