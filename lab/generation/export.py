"""One LoRA file out of a blend: what the evaluation merged predicts, for whoever reads LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import Tensor

from ...blend_core import Blend, BlendError, Target, read_adapter
from ...blend_core.adapters import Adapter, Change
from ...blend_core.adapters.exporting import Exported, exported, provenance
from ...blend_core.blend import normalised, parse_weights
from ...pipelines import load_base, match
from ...trainers.files.lora import diffusers_names, kohya_names, save_lora
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
    preference = normalised(parse_weights(weights, len(names)))
    blend = Blend(names, preference, alignment, tuple(adapter.kl_weight for adapter in adapters))
    pipe = load_base(place(base))
    factors, reports = match(pipe, adapters)
    merged = save_export(pipe, blend, adapters, factors, rank, out)
    lost = f"; {merged.lost:.2%} of the change is lost" if rank else ""
    return "\n".join([f"{out}: {merged.modules} modules{lost}", blend.formula(), *map(str, reports)])


def save_export(
    pipe: DiffusionPipeline,
    blend: Blend,
    adapters: Sequence[Adapter],
    factors: Sequence[Mapping[Target, Change]],
    rank: int,
    out: Path,
) -> Exported:
    """Write the merged blend of adapters that the pipeline's network was matched with. factors: of each adapter."""
    coefficients = list(blend.coefficients[1:])
    merged = exported(factors, coefficients, rank or None)
    tensors = _spelled(merged.tensors, is_unet=getattr(pipe, "unet", None) is not None)
    save_lora(out, tensors, provenance(blend.names, [adapter.path for adapter in adapters], coefficients))
    return merged


def _spelled(tensors: Mapping[str, Tensor], is_unet: bool) -> dict[str, Tensor]:
    """The tensors of `exported` under the names of the trainers' files, whose alpha equals the rank as these do."""
    pairs, differences = {}, {}
    for key, tensor in tensors.items():
        module, down, _ = key.partition(".lora_down.")
        if down or key.endswith(".lora_up.weight"):
            pairs[f"{module.removesuffix('.lora_up.weight')}.lora_{'A' if down else 'B'}.weight"] = tensor
        elif not key.endswith(".alpha"):
            differences[key] = tensor
    if is_unet:
        named = (key.rpartition(".") for key in differences)
        names = [f"lora_unet_{module.replace('.', '_')}.{role}" for module, _, role in named]
        return kohya_names(pairs) | dict(zip(names, differences.values(), strict=True))
    if differences:
        raise BlendError(
            f"{next(iter(differences))}: a whole difference came, which diffusers' LoRA files of transformers cannot "
            "hold. Leave that LoRA out, or use node Save Blend as LoRA, whose files ComfyUI reads."
        )
    return diffusers_names(pairs)
