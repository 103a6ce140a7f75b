"""The soup of factors: A and B of several LoRAs averaged separately, as the code of arXiv 2505.18547 has rewarded soup.

    (sum_i w_i B_i) (sum_i w_i A_i)        where merged evaluation has sum_i w_i B_i A_i

It keeps w_i^2 of each change in the place of w_i, and adds the products of one LoRA's B with another one's A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...blend_core import BlendError, Target
from ...blend_core.adapters import Change, Factors, plain

LoRAChanges = Mapping[Target, Change]
"""What a LoRA does to the layers of a network."""


def equal_factors(names: Sequence[str], loras: Sequence[LoRAChanges]) -> list[dict[Target, Factors]]:
    """Every LoRA's factors, of the same layers, one shape and one scale. Raises BlendError, with names, otherwise."""
    factors_by_lora = [plain(lora, f"soup_factors ({name})") for name, lora in zip(names, loras, strict=True)]
    for name, lora in zip(names, factors_by_lora, strict=True):
        apart = sorted(str(target) for target in lora.keys() ^ factors_by_lora[0].keys())
        if apart:
            raise _unequal(names[0], name, f"only one of them changes {apart[0]}")
        for target, factors in lora.items():
            first = factors_by_lora[0][target]
            if (factors.rank, factors.shape) != (first.rank, first.shape):
                raise _unequal(names[0], name, f"their ranks at {target} are {first.rank} and {factors.rank}")
            if factors.scale != first.scale:
                raise _unequal(names[0], name, f"their scales at {target} are {first.scale:g} and {factors.scale:g}")
    return factors_by_lora


def soup_of_factors(
    names: Sequence[str], loras: Sequence[LoRAChanges], weights: Sequence[float]
) -> dict[Target, Change]:
    """One LoRA with the weighted sums of their `down` and of their `up`, at their scale. Raises as equal_factors."""
    first, *others = equal_factors(names, loras)
    return {
        target: Change(_averaged([factors, *(lora[target] for lora in others)], weights))
        for target, factors in first.items()
    }


def _averaged(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    down, up = (_sum([getattr(pair, name) for pair in factors], weights) for name in ("down", "up"))
    return Factors(down, up, factors[0].scale)


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)  # small fp16 factors times a weight would round to 0
    return torch.stack([weight * tensor.to(dtype) for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def _unequal(first: str, other: str, what: str) -> BlendError:
    return BlendError(
        f"soup_factors averages the factors of LoRAs of one rank, alpha and choice of layers, but of {first} and "
        f"{other} came: {what}. Train them with the same settings, or leave soup_factors out of methods."
    )
