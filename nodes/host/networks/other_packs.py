"""Other packs in the graph which keep something from one pass of the network for another: those known stand here.

Most patches see a blend as one model and need nothing of this. These would take one basis for another, or one image
for another, where a pass holds several variants or passes of several variants follow each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ....blend_core import BlendError
from ..private import network_of

RECORDING = ("nodes_sag",)  # its mask comes from the attention of a whole batch; ComfyUI puts a path before the name
"""Modules whose attention patches keep what they saw: rows of several variants would mix images."""

CACHES = {
    "teacache": (
        "teacache_state",
        "accumulated_rel_l1_distance",
        "previous_modulated_input",
        "previous_residual",
        "skip_steps",
    ),
    "magcache": ("magcache_state", "accumulated_err", "accumulated_ratio", "accumulated_steps", "residual_cache"),
}
"""The attributes in which a cache keeps a step on the network itself, by a word in the name of the forward that it puts
there. EasyCache keeps them in an object of its own."""

REFUSED = {"fbcache_nodes": "Apply First Block Cache (WaveSpeed)"}
"""Nodes, by the module of their function wrapper, which keep a step where nobody else reaches it."""


def refuse(model_options: Mapping) -> None:
    """Raises BlendError where a node is in the graph that would take one basis for another."""
    module = getattr(model_options.get("model_function_wrapper"), "__module__", None) or ""
    name = next((name for ending, name in REFUSED.items() if module.endswith(ending)), None)
    if name:
        raise BlendError(
            f"{name} keeps one residual for every call of the network, so a blend would get what it kept of one basis "
            "as another's. Remove that node; EasyCache, LazyCache and TeaCache work next to a blend."
        )


def separates(network, options: Mapping) -> str:
    """Why no pass may hold two variants: what keeps or numbers the rows of a pass. Empty where nothing does."""
    reasons = {
        "self-attention guidance takes its mask from a whole batch": _records(options),
        "an image prompt has something of its own for each image": _counts_images(options),
        "EasyCache decides for a whole batch": _easycache(options) is not None,
        "a cache of the network's steps decides for a whole batch": bool(_cached_names(network)),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def check_choices(options: Mapping, variants: torch.Tensor) -> None:
    """Raises BlendError where images of different `variants` (k, batch) meet a patch that tells images by place."""
    if _counts_images(options) and not bool((variants == variants[:, :1]).all()):
        raise BlendError(
            f"an IPAdapter has an image, a mask or a weight for each of the {variants.shape[1]} images, but this step "
            "evaluates different rewards for them, which it does one after another. Sample one image at a time, or "
            "choose the exact evaluation."
        )


def _records(options: Mapping) -> bool:
    """Whether a patch keeps what the attention of a pass was (self-attention guidance)."""
    replaced = options.get("patches_replace", {}).get("attn1", {}).values()
    return any(getattr(patch, "__module__", "").endswith(RECORDING) for patch in replaced)


def _counts_images(options: Mapping) -> bool:
    """Whether a patch has something of its own for each image of a pass: IPAdapter's images, masks and weights.

    Where a pass has more rows than it has images, it takes the last one for the rest.
    """
    replaced = options.get("patches_replace", {}).get("attn2", {}).values()
    lists = (settings for patch in replaced for settings in getattr(patch, "kwargs", ()) if isinstance(settings, dict))
    values = (value for settings in lists if "unfold_batch" in settings for value in settings.values())
    return any(isinstance(value, torch.Tensor) and value.dim() and len(value) > 1 for value in values)


def _easycache(options: Mapping):
    """EasyCache's object, or None. LazyCache's, under the same key, stands above the blend and sees one model."""
    holder = options.get("easycache")
    return holder if type(holder).__name__ == "EasyCacheHolder" else None


def _cached_names(network) -> tuple[str, ...]:
    """The attributes that a cache keeps on the network, while its forward stands there; else none."""
    place = vars(network_of(network))
    forwards = [_name(place[name]) for name in ("forward", "_forward", "forward_orig") if name in place]
    kept = (names for word, names in CACHES.items() if any(word in forward for forward in forwards))
    return tuple(name for names in kept for name in names)


def _name(function) -> str:
    """A function's name, in lower case, behind its pack's and module's; the path of the pack is left out."""
    module = (getattr(function, "__module__", None) or "").replace("\\", "/").rpartition("/")[2]
    return f"{module}.{getattr(function, '__qualname__', '')}".lower()


class Caches:
    """What is kept from one pass for the next in one run: for every basis what it would keep if sampled alone.

    Kept by caches of other packs, and by a network on itself. A basis is named by its variant and its images, since the
    images of one pass may be another's in the next step.
    """

    def __init__(self):
        self._holders: dict[Hashable, Any] = {}  # EasyCache's
        self._kept: dict[Hashable, dict[str, Any]] = {}  # attributes of the network
        self._left: set[str] = set()  # those that stand on the network since the last pass
        self._by_network: dict[int, NetworkCache] = {}

    @contextmanager
    def of(self, basis: Hashable, network, options: dict) -> Iterator[None]:
        """While open, caches find what they kept of `basis`. options: those of this pass alone, changed in place."""
        cache = self._by_network.setdefault(id(network), NetworkCache(network_of(network)))
        with self._easycache(basis, network, options), self._attributes(basis, network), cache.of(basis):
            yield

    def leave(self) -> None:
        """Put back what networks kept on themselves before this run."""
        for cache in self._by_network.values():
            cache.leave()

    @contextmanager
    def _easycache(self, basis: Hashable, network, options: dict) -> Iterator[None]:
        if (shared := _easycache(options)) is None:
            yield
            return
        if basis not in self._holders:
            self._holders[basis] = shared.clone().prepare_timesteps(network.model_sampling)
        if not shared.skip_current_step:  # EasyCache takes the flag down before every evaluation of the prompts
            for holder in self._holders.values():
                holder.skip_current_step = False
            shared.skip_current_step = True
        options["easycache"] = self._holders[basis]
        yield
        skipped = [holder.total_steps_skipped for holder in self._holders.values()]
        shared.total_steps_skipped = sum(skipped) // len(skipped)  # which EasyCache logs at the end

    @contextmanager
    def _attributes(self, basis: Hashable, network) -> Iterator[None]:
        if not (names := _cached_names(network)):
            yield
            return
        place = vars(network_of(network))
        for name in self._left - place.keys():  # the cache's node removed it, for a new start
            for kept in self._kept.values():
                kept.pop(name, None)
        for name in names:
            place.pop(name, None)
        place.update(self._kept.get(basis, {}))
        try:
            yield
        finally:
            self._kept[basis] = {name: place[name] for name in names if name in place}
            self._left = set(self._kept[basis])


class NetworkCache:
    """What a network keeps on its modules itself, as HiDream O1 keeps the prompt's keys and values.

    Found by the attribute's name: a change of its value would not show when the network uses what it kept.
    """

    def __init__(self, network: torch.nn.Module):
        self._network = network
        self._before: dict[_Place, Any] = {}
        self._kept: dict[Hashable, dict[_Place, Any]] = {}
        self._places: list[_Place] | None = None

    @contextmanager
    def of(self, basis: Hashable) -> Iterator[None]:
        """While open, the network finds what it kept of `basis`."""
        first = self._places is None
        places = _places(self._network) if self._places is None else self._places
        if first:
            self._places, self._before = places, {place: place.value for place in places}
        kept = self._kept.get(basis, {})
        for place in places:
            place.put(kept.get(place, place.empty))
        yield
        if first:  # some are there only once the network has run
            new = [place for place in _places(self._network) if place not in self._before]
            self._before |= dict.fromkeys(new, _ABSENT)
            places += new
        self._kept[basis] = {place: place.value for place in places}

    def leave(self) -> None:
        """Put back what was there before."""
        for place, value in self._before.items():
            place.put(value)
        self._kept.clear()
        self._places = None


_ABSENT = object()


@dataclass(frozen=True)
class _Place:
    """An attribute of a module; empty: its value where nothing is kept."""

    module: torch.nn.Module
    name: str
    empty: Any = field(compare=False)

    @property
    def value(self) -> Any:
        """What stands there."""
        return vars(self.module).get(self.name, _ABSENT)

    def put(self, value: Any) -> None:
        """Set it, or remove it."""
        if value is _ABSENT:
            vars(self.module).pop(self.name, None)
        else:
            vars(self.module)[self.name] = value


def _places(network: torch.nn.Module) -> list[_Place]:
    """The attributes that a network of ComfyUI keeps tensors of a pass in, without those of CACHES."""
    others = {name for names in CACHES.values() for name in names}
    return [
        _Place(module, name, type(value)() if isinstance(value, list | dict) else None)
        for module in network.modules()
        for name, value in vars(module).items()
        if "cache" in name.lower()
        and name not in others
        and (value is None or isinstance(value, list | dict | tuple | torch.Tensor))
    ]
