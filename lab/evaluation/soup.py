"""The soup of factors: A and B of several LoRAs averaged separately, as the code of arXiv 2505.18547 has rewarded soup.

    (sum_i w_i B_i) (sum_i w_i A_i)        where merged evaluation has sum_i w_i B_i A_i

It keeps w_i^2 of each change in the place of w_i, and adds the products of one LoRA's B with another one's A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...blend_core import BlendError, Target
from ...blend_core.adapters import Factors, plain

LoRAFactors = Mapping[Target, Factors]


def check_factors(names: Sequence[str], loras: Sequence[LoRAFactors]) -> None:
    """Raise BlendError, with names, unless all change the same layers by factors of one shape and one scale."""
    for name, lora in zip(names, loras, strict=True):
        plain(lora.values(), f"soup_factors ({name})")
        apart = sorted(str(target) for target in lora.keys() ^ loras[0].keys())
        if apart:
            raise _unequal(names[0], name, f"only one of them changes {apart[0]}")
        for target, factors in lora.items():
            first = loras[0][target]
            if (factors.rank, factors.shape) != (first.rank, first.shape):
                raise _unequal(names[0], name, f"their ranks at {target} are {first.rank} and {factors.rank}")
            if factors.scale != first.scale:
                raise _unequal(names[0], name, f"their scales at {target} are {first.scale:g} and {factors.scale:g}")


def soup_of_factors(loras: Sequence[LoRAFactors], weights: Sequence[float]) -> dict[Target, Factors]:
    """One LoRA with the weighted sums of their `down` and of their `up`, at their scale. See check_factors."""
    return {
        target: Factors(
            _sum([lora[target].down for lora in loras], weights),
            _sum([lora[target].up for lora in loras], weights),
            first.scale,
        )
        for target, first in loras[0].items()
    }


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)  # small fp16 factors times a weight would round to 0
    return torch.stack([weight * tensor.to(dtype) for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def _unequal(first: str, other: str, what: str) -> BlendError:
    return BlendError(
        f"soup_factors averages the factors of LoRAs of one rank, alpha and choice of layers, but of {first} and "
        f"{other} came: {what}. Train them with the same settings, or leave soup_factors out of methods."
    )
