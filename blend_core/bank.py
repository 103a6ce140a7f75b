"""The LoRA bank: one copy of the base weights, and every adapter as low-rank factors added in the forward pass.

    W_i x = W x + scale_i * up_i (down_i x)        for basis i; variant 0 is the base and adds nothing

What is no pair of factors (LoHa, LoKr, DoRA, whole differences) runs beside it, more slowly: see layers.py.

A bank belongs to no host: `attach` finds its modules by name below any network, and only while `Attachment.using` is
open do those modules carry another `forward`. No weight is ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Change, Factors, Target
from .errors import BlendError
from .layers import CONVOLUTIONS, ChangedLayer, Gains, convolved


class LoRABank(nn.Module):
    """The factors of m bases, stacked per target module.

    adapters: one mapping Target -> Factors or Change per basis, in the order of the blend; variant i + 1 is
    adapters[i].
    """

    def __init__(self, adapters: Sequence[Mapping[Target, Factors | Change]]):
        super().__init__()
        self.size = len(adapters)
        self._adapters = tuple(adapters)
        pieces: dict[str, dict[int, list[tuple[Target, Factors | Change]]]] = {}
        for variant, adapter in enumerate(adapters, start=1):
            for target, change in adapter.items():
                pieces.setdefault(target.module, {}).setdefault(variant, []).append((target, change))
        slots = [(name, slot) for name, of_module in pieces.items() for slot in _slots(of_module)]
        self.names = [name for name, _ in slots]
        self.slots = nn.ModuleList(slot for _, slot in slots)
        self._attachments: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()

    def copied(self) -> LoRABank:
        """A bank of the same adapters for another device, as they were read."""
        return LoRABank(self._adapters)

    @property
    def nbytes(self) -> int:
        """Bytes that the factors take."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def _low_rank(self) -> list[_Slot]:
        return [slot for slot in self.slots if isinstance(slot, _Slot)]

    @property
    def changed_layers(self) -> list[ChangedLayer]:
        """The layers of the slower path; none for plain LoRAs."""
        return [slot for slot in self.slots if isinstance(slot, ChangedLayer)]

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest difference that a pass builds and drops again; 0 for plain LoRAs."""
        return max((layer.transient_bytes for layer in self.changed_layers), default=0)

    def drop_casts(self) -> None:
        """Let go of the factors' copies in the dtype of a computation, after a run.

        A host that moves the factors off its device to make room does not know of these.
        """
        for slot in self._low_rank:
            slot.drop_casts()

    def attach(
        self,
        network: nn.Module,
        dtype: torch.dtype | None = None,
        patched: Callable[[nn.Module], bool] = lambda module: False,
    ) -> Attachment:
        """The handle that switches this bank on for calls of `network`, the same one while its modules are the same.

        dtype: of the network's computation; factors are then kept in it alone. Layers that compute in another get a
        copy.  patched(module): whether other patches reach its weight only when it runs. It walks the network, to
        notice modules that were replaced since: call it once per run. Raises BlendError where the network lacks a
        module.
        """
        if dtype is not None:
            for slot in self._low_rank:
                slot.keep_as(dtype)
        # torch.compile puts a module around the network, whose weights lie one name deeper while it runs.
        modules = {name.replace("._orig_mod", ""): module for name, module in network.named_modules()}
        attachment = self._attachments.get(network)
        if attachment is None or not attachment.fits(modules):
            attachment = self._attachments[network] = Attachment(self, modules)
        attachment.measure(patched)
        return attachment


@dataclass
class _Site:
    """One target module of one network, and the forward that adds the active deltas to the one found there."""

    module: nn.Module
    slot: _Slot | ChangedLayer
    attachment: Attachment
    original: object = None
    had_own: bool = False
    gains: Gains = ()
    forward: object = None  # one function object for ever, so that torch.compile traces it once

    def __post_init__(self):
        def forward(x, *args, **kwargs):
            out = self.original(x, *args, **kwargs)
            return self.slot.add(out, x, self, lambda other: self.original(other, *args, **kwargs))

        self.forward = forward

    @property
    def selection(self) -> Selection:
        """Whose rows a call holds, while the bank is in use."""
        return self.attachment.selection

    def install(self) -> None:
        own = self.module.__dict__
        self.had_own = "forward" in own  # another pack's replaced forward: keep it below ours and put it back
        self.original = self.module.forward
        own["forward"] = self.forward

    def remove(self) -> None:
        if self.had_own:
            self.module.__dict__["forward"] = self.original
        else:
            del self.module.__dict__["forward"]
        self.original = None


class Attachment:
    """A bank on one network. One thread at a time; other networks (other devices) have attachments of their own."""

    def __init__(self, bank: LoRABank, modules: Mapping[str, nn.Module]):
        self.selection: Selection | None = None
        missing = [name for name in bank.names if name not in modules]
        if missing:
            raise BlendError(
                f"{len(missing)} of {len(bank.names)} adapted modules are not in this network "
                f"({', '.join(missing[:3])}). The LoRAs were matched with another model; match them with this one."
            )
        slots = list(zip(bank.names, bank.slots, strict=True))
        grouped = [n for n, slot in slots if isinstance(slot, _Slot) and getattr(modules[n], "groups", 1) != 1]
        if grouped:
            raise BlendError(
                f"{len(grouped)} adapted convolutions work on groups of channels ({', '.join(grouped[:3])}), to which "
                "a low-rank addition cannot be applied. Use a LoRA without these layers."
            )
        self._names = bank.names
        self._sites = [_Site(modules[name], slot, self) for name, slot in slots]

    def measure(self, patched: Callable[[nn.Module], bool]) -> None:
        """Take the norms that DoRA needs, of the weights as they are now: other patches may have changed them."""
        for site in self._sites:
            if isinstance(site.slot, ChangedLayer):
                site.gains = site.slot.gains(site.module, patched(site.module))

    def fits(self, modules: Mapping[str, nn.Module]) -> bool:
        """Whether the modules this handle was made for are still the ones of these names."""
        return all(modules.get(name) is site.module for name, site in zip(self._names, self._sites, strict=True))

    @contextmanager
    def using(self, variants: Sequence[int]) -> Iterator[None]:
        """While open, row i of every call of the network is variant variants[i].

        Rows may stand several times each (frames of a video folded into the batch). Whatever happens inside, every
        forward is put back as it was found. Raises BlendError when it is open already: a second layer of the same
        forwards would call itself, and could not be taken off again.
        """
        if self.selection is not None:
            raise BlendError(
                "this bank is in use on this network already. Leave the open `using` first; for another thread, attach "
                "to a copy of the network."
            )
        active = set(variants) - {0}
        selection = Selection(tuple(variants))
        installed: list[_Site] = []
        try:
            self.selection = selection
            for site in self._sites:
                if not active.isdisjoint(site.slot.variants):
                    site.install()
                    installed.append(site)
            yield
        finally:
            for site in reversed(installed):
                site.remove()
            self.selection = None


@dataclass
class Selection:
    """The variant of each row of a call, with the index tensors that the slots derive from it.

    only: the variant, when all rows have the same one.
    """

    variants: tuple[int, ...]
    only: int | None = field(init=False)  # no cached property, whose lock torch.compile cannot trace
    _indices: dict = field(default_factory=dict)

    def __post_init__(self):
        first = self.variants[0]
        self.only = first if all(variant == first for variant in self.variants) else None

    def index(self, covered: tuple[int, ...], x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Per row of x the place in `covered`, (rows,) long, and (rows, 1, 1) 0/1 where some variant is not covered.

        Raises BlendError where it is unknown which row is whose: another count, or tokens in one list, which a network
        may have sorted (to their experts) so that a fitting count would be chance.
        """
        rows = x.shape[0]
        key = (covered, rows, x.device)
        if rows != len(self.variants) and x.dim() == 2:
            raise self._mixed(rows)
        if key not in self._indices:
            self._indices[key] = self._build_index(covered, rows, x.device)
        return self._indices[key]

    def rows_of(self, variant: int, x: Tensor) -> Tensor | None:
        """The rows of x that are this variant's, (n,) long, maybe none; None where all are. Raises as `index` does."""
        if self.only is not None:
            return None if self.only == variant else torch.empty(0, dtype=torch.long, device=x.device)
        self.index((variant,), x)
        key = ("rows", variant, x.shape[0], x.device)
        if key not in self._indices:
            times = x.shape[0] // len(self.variants)
            rows = [i * times + j for i, each in enumerate(self.variants) if each == variant for j in range(times)]
            self._indices[key] = torch.tensor(rows, dtype=torch.long, device=x.device)
        return self._indices[key]

    def _build_index(self, covered, rows, device):
        times, rest = divmod(rows, len(self.variants))
        if rest or times == 0:
            raise self._mixed(rows)
        place = {variant: i for i, variant in enumerate(covered)}
        found = [place.get(variant, -1) for variant in self.variants]
        places = torch.tensor(found).repeat_interleave(times)
        mask = (places >= 0).view(-1, 1, 1).to(device) if -1 in found else None
        return places.clamp(min=0).to(device), mask

    def _mixed(self, rows: int) -> BlendError:
        return BlendError(
            f"a layer received {rows} rows where the blend passed {len(self.variants)}, so it is unknown which row is "
            "whose: this network mixes images within a batch. Sample one image at a time, with the sequential "
            "execution."
        )


def _slots(of_module: Mapping[int, Sequence[tuple[Target, Factors | Change]]]) -> list[ChangedLayer | _Slot]:
    """One module's slots. The changed layer comes first, next to the module, which it may have to call again."""
    plain = {v: pieces for v, pieces in of_module.items() if all(isinstance(change, Factors) for _, change in pieces)}
    changed = {v: pieces for v, pieces in of_module.items() if v not in plain}
    return [*([ChangedLayer(changed)] if changed else []), *([_Slot(plain)] if plain else [])]


class _Slot(nn.Module):
    """The factors that all bases have for one module, rank padded: down (v, rank, ...), up (v, out, rank).

    scale: (v, rank), of each column of `up`. It is applied as the factors are: multiplied into `up`, a scale below 1
    could push float16 numbers into the subnormal range, or would make them float32, twice as large.
    """

    def __init__(self, of_module: Mapping[int, Sequence[tuple[Target, Factors]]]):
        super().__init__()
        self.variants = tuple(of_module)
        self._files = tuple(of_module.values())  # as they were read, for another dtype than the one kept
        fused = [_fuse(pieces) for pieces in self._files]
        self.ranks = [down.shape[0] for down, _, _ in fused]
        self.alphas = [scales[0] if len(set(scales)) == 1 else None for _, _, scales in fused]  # of all columns
        down, up, self.scale = _stacked(fused)  # scale is no buffer: not every device has its float64
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self._cast: dict[tuple[torch.device, torch.dtype], _Cast] = {}

    def keep_as(self, dtype: torch.dtype) -> None:
        """Keep the factors in the dtype of the computation alone, where they are."""
        if self.down.dtype != dtype:
            device = self.down.device
            self.down, self.up, _ = (t.to(device, dtype) for t in _stacked([_fuse(pieces) for pieces in self._files]))
            self.drop_casts()

    def add(self, out: Tensor, x: Tensor, site: _Site, again: object) -> Tensor:
        """out + scale * up (down x), row by row the delta of that row's variant."""
        factors = self._factors(x)
        if (only := site.selection.only) is not None:
            one = _add_conv_one if self.down.dim() > 3 else _add_linear_one
            return one(out, x, *factors.alone[only], site.module)
        places, mask = site.selection.index(self.variants, x)
        per_row = _add_conv_per_row if self.down.dim() > 3 else _add_linear_per_row
        weights = self._row_weights(factors.scale, places, mask)
        return per_row(out, x, factors.down, factors.up, places, weights, site.module)

    def _row_weights(self, scale: Tensor, places: Tensor, mask: Tensor | None) -> Tensor | float:
        """What the rows' hidden vectors are multiplied by: (rows, 1, rank), or one number where all are alike."""
        if mask is None and len(set(self.alphas)) == 1 and self.alphas[0] is not None:
            return self.alphas[0]
        weights = scale[places][:, None]
        return weights if mask is None else weights * mask

    def _factors(self, x: Tensor) -> _Cast:
        """The factors in the device and dtype of the computation; weights may be stored in fp8 or fewer bits."""
        key = (x.device, x.dtype)
        if key not in self._cast:
            self._cast.clear()
            down, up, scale = self.down.to(*key), self.up.to(*key), self.scale.to(x.dtype).to(x.device)
            alone = {
                variant: (down[i, :rank], up[i, :, :rank], scale[i, :rank] if alpha is None else alpha)
                for i, (variant, rank, alpha) in enumerate(zip(self.variants, self.ranks, self.alphas, strict=True))
            }
            self._cast[key] = _Cast(down, up, scale, alone)
        return self._cast[key]

    def drop_casts(self) -> None:
        """Let go of the copies that `_factors` made."""
        self._cast = {}

    def _apply(self, fn, recurse=True):
        self.drop_casts()  # moved or cast by the host: keep no second copy where it was
        return super()._apply(fn, recurse)


@dataclass
class _Cast:
    """The factors where they are used. alone: (down, up, scale or scales) of each variant, by the variant."""

    down: Tensor
    up: Tensor
    scale: Tensor
    alone: dict[int, tuple[Tensor, Tensor, Tensor | float]]


def _stacked(fused: Sequence[tuple[Tensor, Tensor, list[float]]]) -> tuple[Tensor, Tensor, Tensor]:
    """down (v, rank, ...), up (v, out, rank) and scale (v, rank), of the largest rank."""
    rank = max(down.shape[0] for down, _, _ in fused)
    down = torch.stack([_pad(down, 0, rank) for down, _, _ in fused])
    up = torch.stack([_pad(up, 1, rank) for _, up, _ in fused])
    return down, up, torch.stack([_pad(torch.tensor(scales, dtype=torch.float64), 0, rank) for *_, scales in fused])


def _split(weights: Tensor | float) -> tuple[Tensor | None, float]:
    """(what to multiply hidden vectors by, the number that a product takes for nothing)."""
    return (weights, 1.0) if isinstance(weights, Tensor) else (None, weights)


def _add_linear_one(out, x, down, up, weights, module):
    weights, alpha = _split(weights)
    hidden = F.linear(x, down)
    if weights is not None:
        hidden = hidden * weights
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if out.is_contiguous() and not out.requires_grad and out is not x:
        out.view(-1, out.shape[-1]).addmm_(hidden, up.t(), alpha=alpha)  # a fresh output: without it, one copy more
        return out
    return torch.addmm(out.reshape(-1, out.shape[-1]), hidden, up.t(), alpha=alpha).view(out.shape)


def _add_linear_per_row(out, x, down, up, places, weights, module):
    weights, alpha = _split(weights)
    hidden = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), down[places].transpose(1, 2))
    if weights is not None:
        hidden = hidden * weights
    rows = out.reshape(out.shape[0], -1, out.shape[-1])
    return torch.baddbmm(rows, hidden, up[places].transpose(1, 2), alpha=alpha).view(out.shape)


def _add_conv_one(out, x, down, up, weights, module):
    weights, alpha = _split(weights)
    hidden = convolved(x, down, module)
    if weights is not None:
        hidden = hidden * weights.view(-1, *[1] * (x.dim() - 2))
    delta = CONVOLUTIONS[x.dim()](hidden, up.view(*up.shape, *[1] * (x.dim() - 2)))
    return torch.add(out, delta, alpha=alpha)


def _add_conv_per_row(out, x, down, up, places, weights, module):
    """All downs as one convolution (their channels are few), each row keeping its own variant's channels."""
    weights, alpha = _split(weights)
    count, rank = down.shape[:2]
    hidden = convolved(x, down.flatten(0, 1), module)
    hidden = hidden.view(x.shape[0], count, rank, -1)[torch.arange(x.shape[0], device=x.device), places]
    if weights is not None:
        hidden = hidden * weights.transpose(1, 2)
    return torch.add(out, torch.bmm(up[places], hidden).view(out.shape), alpha=alpha)


def _fuse(pieces: Sequence[tuple[Target, Factors]]) -> tuple[Tensor, Tensor, list[float]]:
    """One (down, up, scale per column) for all pieces on a module, a slice's `up` zero outside its rows.

    Three adapters on q, k and v of one fused weight become one of three times the rank, exactly.
    """
    downs, ups, scales = [], [], []
    for target, factors in pieces:
        up = factors.up
        if target.rows is not None:
            offset, length = target.rows
            up = F.pad(up, (0, 0, offset, target.shape[0] - offset - length))
        downs.append(factors.down)
        ups.append(up)
        scales += [float(factors.scale)] * factors.rank
    dtype = downs[0].dtype
    return torch.cat([down.to(dtype) for down in downs]), torch.cat([up.to(dtype) for up in ups], dim=1), scales


def _pad(factor: Tensor, dim: int, rank: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if missing == 0:
        return factor
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim)
