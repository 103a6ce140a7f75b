"""LoRA files from one spelling to another, and fully tuned networks to LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...blend_core import BlendError, resolve
from ...blend_core.adapters import Adapter, Factors, plain
from ...blend_core.adapters.scale import HEADER_KEY
from ...pipelines import target_index
from .lora import diffusers_names, kohya_names

SPELLINGS = ("kohya", "diffusers", "peft")


@dataclass(frozen=True)
class Reduction:
    """A delta cut to low rank.

    lost: the share of its Frobenius norm that is gone, by module.  left_out: what changed too and no LoRA can hold.
    lost_share: of the whole delta, what is left out included.
    """

    factors: dict[str, Factors]
    lost: dict[str, float]
    left_out: tuple[str, ...]
    lost_share: float


def by_module(adapter: Adapter, network: nn.Module | None) -> dict[str, Factors]:
    """The adapter's factors by module path. network: the one they are for; without it the file must hold paths.

    Raises BlendError where paths cannot be told from the file alone, modules do not fit the network, or the file holds
    other kinds than LoRA.
    """
    what = f"{adapter.label}: another spelling"
    factors = plain(adapter.modules, what)
    if network is not None:
        resolved, report = resolve(adapter, target_index(network))
        if report.matched != report.in_file or any(target.rows for target in resolved):
            raise BlendError(
                f"{adapter.label}: {report.matched} of {report.in_file} modules fit the base, or some are slices of a "
                "fused weight. Give the base the LoRA was trained on."
            )
        return plain({target.module: change for target, change in resolved.items()}, what)
    if not all("." in name for name in factors):
        raise BlendError(
            f"{adapter.path} has kohya's names, whose underscores hide the module paths. Give --base: the model it "
            "was trained on."
        )
    return factors


def spelled(modules: Mapping[str, Factors], spelling: str, component: str = "unet") -> dict[str, Tensor]:
    """A file's tensors. Every scale is folded into `up`, so that alpha equals the rank: scale 1 for every reader."""
    if spelling not in SPELLINGS:
        raise BlendError(f"the spelling is {spelling!r}, expected one of {', '.join(SPELLINGS)}. Choose one.")
    state = {}
    for name, factors in modules.items():
        trailing = (1,) * (factors.down.dim() - 2)
        up = factors.up.float() * factors.scale
        state[f"base_model.model.{name}.lora_A.weight"] = factors.down.float().contiguous()
        state[f"base_model.model.{name}.lora_B.weight"] = up.reshape(*up.shape, *trailing).contiguous()
    if spelling == "peft":
        return state
    return kohya_names(state) if spelling == "kohya" else diffusers_names(state, component)


def carried(metadata: Mapping[str, str]) -> dict[str, str]:
    """The header for a file of `spelled`: without peft's own configuration, whose alpha is folded in by now."""
    return {name: value for name, value in metadata.items() if name != HEADER_KEY}


def reduced(tuned: Mapping[str, Tensor], network: nn.Module, rank: int) -> Reduction:
    """The best LoRA of `rank` for tuned - base, by singular values of every linear layer and convolution.

    tuned: the whole network's weights under the base's names. Raises BlendError where they are not.
    """
    base = network.state_dict()
    strangers = sorted(set(tuned) ^ set(base))
    if strangers:
        raise BlendError(
            f"the tuned network and the base differ in {len(strangers)} names, such as {strangers[0]}. Give the base "
            "it was tuned from, and the weights of the network alone."
        )
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    factors, lost, left_out, kept_squares, squares = {}, {}, [], 0.0, 0.0
    for key, weight in tuned.items():
        delta = weight.double() - base[key].double()
        if not delta.any():
            continue
        squares += delta.square().sum().item()
        module, _, part = key.rpartition(".")
        if part != "weight" or module not in layers:
            left_out.append(key)
            continue
        factors[module], kept = _cut(delta, rank)
        kept_squares += kept
        lost[module] = max(1 - kept / delta.square().sum().item(), 0.0) ** 0.5
    share = max(1 - kept_squares / squares, 0.0) ** 0.5 if squares else 0.0
    return Reduction(factors, lost, tuple(left_out), share)


def _cut(delta: Tensor, rank: int) -> tuple[Factors, float]:
    """(factors, squared norm kept) of the nearest matrix of that rank."""
    left, values, right = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    count = min(rank, len(values))
    root = values[:count].sqrt()
    down = (root[:, None] * right[:count]).reshape(count, *delta.shape[1:]).float()
    return Factors(down, (left[:, :count] * root).float(), 1.0), values[:count].square().sum().item()
