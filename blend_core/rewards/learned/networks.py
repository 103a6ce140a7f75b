"""Networks filled strictly from a file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...errors import BlendError
from ..contract import Network, frozen

PLACES = "position_ids"  # counts 0, 1, 2...; old files store it, new modules make it


def filled(
    kind: type[Network],
    config,
    state: Mapping[str, Tensor],
    wrapper: str = "",
    compute: Callable[[Network], None] | None = None,
    **options,
) -> Network:
    """kind(config, **options) with the weights of `state`, every one of them and no others, frozen.

    wrapper: what some versions of transformers put before every name of this network, and others do not.  compute: sets
    the buffers that no file holds.
    Nothing is initialised on the way: a billion random numbers would be drawn only to be thrown away.
    """
    with torch.device("meta"):
        network = kind(config, **options)
    expected = network.state_dict()
    wrapped = wrapper and all(name.startswith(wrapper) for name in expected)
    bare = {name.removeprefix(wrapper): value for name, value in state.items() if not name.endswith(PLACES)}
    state = {wrapper + name: value for name, value in bare.items()} if wrapped else bare
    check_keys(kind.__name__, expected, state)
    network.load_state_dict(state, strict=True, assign=True)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name == PLACES:
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    if compute is not None:
        compute(network)
    unfilled = [name for name, value in [*network.named_parameters(), *network.named_buffers()] if value.is_meta]
    assert not unfilled, f"{kind.__name__} has buffers unknown to us: {unfilled}"
    return frozen(network)


def square(size: int | Sequence[int] | None) -> int:
    """The side of a vision tower's square input, which transformers may keep as (height, width)."""
    assert size is not None  # our configurations state it
    return size if isinstance(size, int) else size[0]


def check_keys(what: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise BlendError unless both have the same names and shapes."""
    missing, spare = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    mismatched = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if not (missing or spare or mismatched):
        return
    facts = [
        *([f"{len(missing)} are missing ({', '.join(missing[:3])})"] if missing else []),
        *([f"{len(spare)} are unknown ({', '.join(spare[:3])})"] if spare else []),
        *([_shapes(name, expected, tensors) for name in sorted(mismatched)[:1]]),
    ]
    raise BlendError(
        f"the file does not fit {what}: of its {len(tensors)} tensors {'; '.join(facts)}. It is another model's, or "
        "another version. Get the file that the reward names."
    )


def _shapes(name: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    return f"{name} has the shape {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"


def starting(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The entries whose names start with one of the prefixes."""
    return {name: value for name, value in state.items() if name.startswith(prefixes)}
