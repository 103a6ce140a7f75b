"""One LoRA file out of a blend: what the evaluation merged predicts, for whoever reads LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...blend_core import Blend, BlendError, read_adapter
from ...blend_core.adapters.exporting import exported, provenance
from ...blend_core.blend import parse_weights
from ...pipelines import load_base, match
from ...trainers.files.lora import save_lora
from ..toy import place


def export(base: str, rewards: Mapping[str, str], weights: str, alignment: float, rank: int, out: Path) -> str:
    """Write `out` and say what is in it.

    rewards: label -> file.  rank: the most that a module keeps; 0: all. UNets get kohya's names, transformers
    diffusers', as the trainers' files do. Raises BlendError for LoRAs that do not fit, and for changes that no file of
    the base's spelling can hold.
    """
    if not rewards:
        raise BlendError("no reward LoRA came. Give --reward NAME=PATH, once for each.")
    adapters = [read_adapter(place(file)) for file in rewards.values()]
    names = tuple(rewards)
    preference = parse_weights(weights, len(names))
    blend = Blend(names, preference, alignment, tuple(adapter.kl_weight for adapter in adapters))
    pipe = load_base(place(base))
    factors, reports = match(pipe, adapters)
    coefficients = list(blend.coefficients[1:])
    merged = exported(factors, coefficients, rank or None)
    is_unet = getattr(pipe, "unet", None) is not None
    tensors = dict(_kohya(merged.tensors) if is_unet else _diffusers(merged.tensors))
    save_lora(out, tensors, provenance(names, [adapter.path for adapter in adapters], coefficients))
    lost = f"; {merged.lost:.2%} of the change is lost" if rank else ""
    return "\n".join([f"{out}: {merged.modules} modules{lost}", blend.formula(), *map(str, reports)])


def _kohya(tensors: Mapping[str, Tensor]):
    """`lora_unet_X.lora_down.weight`, `.alpha`, `.diff`, `.diff_b`."""
    for key, tensor in tensors.items():
        module, role = _split(key)
        yield f"lora_unet_{module.replace('.', '_')}.{role}", tensor


def _diffusers(tensors: Mapping[str, Tensor]):
    """`transformer.X.lora_A.weight`; without `.alpha`, since the scale is 1."""
    roles = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    for key, tensor in tensors.items():
        module, role = _split(key)
        if role in roles:
            yield f"transformer.{module}.{roles[role]}", tensor
        elif role != "alpha":
            raise BlendError(
                f"{module} is changed by a whole difference, which diffusers' LoRA files of transformers cannot hold. "
                "Leave that LoRA out, or use node Save Blend as LoRA, whose files ComfyUI reads."
            )


def _split(key: str) -> tuple[str, str]:
    """A key of `exported` as (module, role)."""
    module, dot, end = key.rpartition(".lora_")
    if dot:
        return module, f"lora_{end}"
    module, _, role = key.rpartition(".")
    return module, role
