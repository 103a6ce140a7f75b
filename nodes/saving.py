"""A blend as one LoRA file, which other loaders read."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from safetensors.torch import save_file

from ..blend_core import BlendError, LoadReport, resolve
from ..blend_core.adapters.exporting import exported, provenance
from .host.networks.targets import target_index
from .inputs import CATEGORY, blend_input, model_input
from .output import shown
from .types import Basis, LoRABlend, RewardLoRA, blend_of

MOST_RANKS = 4096


class SaveBlendAsLoRA(io.ComfyNode):
    """The merged blend as a LoRA file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendSaveLoRA",
            display_name="Save Blend as LoRA",
            category=CATEGORY,
            description="Writes one LoRA file that does what the evaluation merged does: all LoRAs of the blend added "
            "up at their coefficients. Any LoRA loader reads it.",
            search_aliases=["save lora", "merge loras", "export blend", "bake lora"],
            is_output_node=True,
            inputs=[
                model_input(),
                blend_input("blend", "What to write, from Blend Weights or KL Interpolate."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/blend",
                    tooltip="Where in ComfyUI's output folder. Move the file to models/loras to load it.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=MOST_RANKS,
                    tooltip="0: exact, at the sum of the LoRAs' ranks. Else the most that a layer keeps; the node says "
                    "what share of the change is lost.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, model, blend: LoRABlend | Basis, filename_prefix: str, rank: int = 0) -> io.NodeOutput:
        """Write the file and say what is in it. Raises BlendError for what no LoRA file can hold."""
        blend = blend_of(blend)
        adapters, reports = _resolved(blend, model)
        (coefficients,) = blend.coefficients(1)
        chosen = coefficients[0, 1:].tolist()
        merged = exported(adapters, chosen, rank or None)
        output = folder_paths.get_output_directory()
        folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, output)
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        paths = [basis.adapter.path for basis in blend.bases if isinstance(basis, RewardLoRA)]
        save_file(merged.tensors, path, provenance(blend.names, paths, chosen))
        lost = f"; {merged.lost:.2%} of the change is lost" if rank else ""
        written = f"written: output/{path.relative_to(output).as_posix()}, {merged.modules} modules{lost}"
        return shown("\n".join([written, blend.schedule.formula(), *map(str, reports)]))


def _resolved(blend: LoRABlend, model) -> tuple[list[dict], list[LoadReport]]:
    """What each LoRA changes, and how it matched."""
    whole = [basis.label for basis in blend.bases if not isinstance(basis, RewardLoRA)]
    loras = [basis for basis in blend.bases if isinstance(basis, RewardLoRA)]
    if whole:
        raise BlendError(
            f"{', '.join(whole)} is a whole model, which no LoRA file can hold. Leave it out of the blend, or save the "
            "model itself by ComfyUI's Save Checkpoint."
        )
    if not blend.schedule.is_constant or blend.regions:
        raise BlendError(
            "the blend changes over the run or the image, and a LoRA file is the same everywhere. Connect the blend "
            "from before Blend Schedule or Blend Region, and set until of KL Interpolate to 1."
        )
    index = target_index(model.model)
    resolved = [resolve(basis.adapter, index, allow_partial=basis.allow_partial) for basis in loras]
    return [changes for changes, _ in resolved], [report for _, report in resolved]

