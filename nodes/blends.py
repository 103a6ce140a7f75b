"""Turning reward LoRAs and weights into a blend, or straight into a blended MODEL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..blend_core import BlendError
from ..blend_core.adapters import mixed_experts
from ..blend_core.adapters.files import sha256
from ..blend_core.adapters.routing import check_prompt, routed, without_auto
from ..blend_core.blend import normalised, parse_numbers, parse_weights, shares
from ..blend_core.estimators import exact, merged
from .host.apply import apply_blend
from .inputs import CATEGORY, blend_input, model_input, target_kl_weight_input
from .loaders import file_facts, lora_names, reward_lora, stacked
from .output import CACHED_TOO, shown
from .types import Basis, BlendSocket, LoRABlend, LoRAStackSocket, RewardLoRA, RewardLoRASocket, blend_of, joined

MOST_BASES = 16
MOST_ROWS = 8
NO_FILE = "none"
WAYS = {"exact": exact, "merged": merged}


class BlendWeights(io.ComfyNode):
    """Preferences over rewards (DB-MPA)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        template = io.Autogrow.TemplatePrefix(
            RewardLoRASocket.Input(
                "lora",
                optional=True,  # a stack may bring all
                tooltip="A reward LoRA; a new slot appears with each one you connect.",
            ),
            prefix="lora_",
            min=1,
            max=MOST_BASES,
        )
        return io.Schema(
            node_id="DiffusionBlendBlendWeights",
            display_name="Blend Weights",
            category=CATEGORY,
            description="How much of each reward: 0.6, 0.4 is 60% of the first and 40% of the second.",
            search_aliases=[
                *("blend weights", "preference", "reward weights", "DB-MPA", "rlhf"),
                *("mix lora", "merge lora", "multi lora", "lora stack"),
            ],
            **CACHED_TOO,
            inputs=[
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One number per reward LoRA, in the order of the slots, such as 0.6, 0.4. 0 leaves a "
                    "reward out, 1, 0 is the first alone. Empty: equal weights. Below 0 needs normalise off. The "
                    "number of a bypassed or muted LoRA stays and is left out. auto before the numbers, or alone: "
                    "prompt raises the rewards it asks for.",
                ),
                io.Boolean.Input(
                    "normalise",
                    default=True,
                    tooltip="On: the weights are shares, divided by their sum. Off: they are taken as they are, so "
                    "that 0.3, 0.3 keeps 0.4 of the base model, 1, 1 goes twice as far as trained, and 1, -0.5 moves "
                    "away from the second. Below 0, or with a sum above 1, only exact, budget and merged evaluation "
                    "work.",
                ),
                LoRAStackSocket.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="Reward LoRAs from another pack's LoRA stacker; their weights come after those of the "
                    "slots. A model strength multiplies the LoRA's own scale (1: as trained); weights says how much of "
                    "each. Rows without a file are left out, the clip strength is ignored.",
                ),
                # Behind all other slots: where the editor counts slots by their number, a group that grows would
                # otherwise move them.
                io.Autogrow.Input("loras", template=template, optional=True),
                target_kl_weight_input(
                    "The KL weight to blend for, when every LoRA states its own: smaller is further from the base. 0: "
                    "the average of the LoRAs', by their weights."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For weights that begin with auto, the text of positive: quoted text raises the LoRA "
                    "labelled text or ocr, numbers and relations the one labelled geneval or composition.",
                ),
            ],
            outputs=[BlendSocket.Output(display_name="blend", tooltip="Connect to a sampler, or to KL Interpolate.")],
        )

    @classmethod
    def execute(
        cls,
        loras: dict[str, Basis | None],
        weights: str,
        normalise: bool,
        target_kl_weight: float = 0.0,
        lora_stack: list[tuple[str, float, float]] | None = None,
        prompt: str = "",
    ) -> io.NodeOutput:
        """Build the blend and show its coefficients. Raises BlendError for weights that make none."""
        auto, weights = without_auto(weights)
        slots = {slot: lora for slot, lora in loras.items() if lora is not None}
        stack = stacked(lora_stack)
        bases = (*slots.values(), *stack)
        names = [f"{slot} {lora.label}" for slot, lora in slots.items()]
        numbers = parse_weights(
            weights, len(bases), slots=_numbered(list(slots), len(stack)), names=[*names, *(s.label for s in stack)]
        )
        route = ""
        if auto:
            numbers, route = routed(prompt, [basis.label for basis in bases], numbers)
        preference = normalised(numbers) if normalise else shares(numbers)
        alignment = 1.0 if normalise else math.fsum(map(abs, numbers))
        blend = LoRABlend.of(bases, preference, alignment=alignment, target_kl_weight=target_kl_weight or None)
        warning = mixed_experts(basis.adapter for basis in bases if isinstance(basis, RewardLoRA))
        return shown("\n".join(filter(None, [blend.describe(), route, *blend.strengths(), warning])), blend)

    @classmethod
    def validate_inputs(
        cls,
        weights: str | None = None,
        normalise: bool | None = None,
        loras: dict | None = None,
        prompt: str | None = None,
    ) -> bool:
        """Refuse weights that make no blend, before anything runs; None where a link brings them, or what is on.

        loras: ComfyUI hands growing inputs over whether asked or not, here with nothing in their slots. What a stack
        brings is not known yet, so that too many weights are refused when the node runs. Raises BlendError, since
        ComfyUI would put an answer to each of the two inputs.
        """
        slots = list(loras or {})
        auto, weights = without_auto(weights or "")
        if auto and prompt is not None:
            check_prompt(prompt)
        numbers = parse_numbers(weights, "weights", "reward LoRA", "0.6, 0.4")
        if numbers:
            (normalised if normalise else shares)(numbers)
        if len(numbers) < len(slots):
            parse_weights(weights, len(slots), names=slots)
        return True


def _numbered(slots: list[str], stack: int) -> list[int]:
    """The number of each LoRA's weight: of its slot, then those of a stack."""
    places = [int(slot.rpartition("_")[2]) for slot in slots]
    after = places[-1] + 1 if places else 0
    return [*places, *range(after, after + stack)]


class KLInterpolate(io.ComfyNode):
    """The dial between base and tuned models, and beyond (DB-KLA)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendKLInterpolate",
            display_name="KL Interpolate",
            category=CATEGORY,
            description="How far from the base model: 0 is the base, 1 as trained, 2 twice as far. It multiplies the "
            "distance that the blend already has.",
            search_aliases=["kl", "alignment", "DB-KLA", "reward strength", "lambda"],
            **CACHED_TOO,
            inputs=[
                blend_input("blend", "A blend, or a single reward LoRA."),
                io.Float.Input(
                    "alignment",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="0: the base model. 0.5: half the KL pull. 1: as trained. Above 1 extrapolates: 1.2 to 2 "
                    "often raises the reward further, beyond that images tend to break. Below 0 moves away from the "
                    "reward. Above 1 and below 0 only exact, budget and merged evaluation work.",
                ),
                io.Float.Input(
                    "until",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    tooltip="The share of the steps that the blend acts in; the base model makes those after it, at "
                    "one evaluation each. 1: all. 0.9: not the last tenth, 2 of 20 steps. The last steps take the "
                    "image far from the base and hardly raise the reward, so that 0.9 leaves room for an alignment of "
                    "about 1.4.",
                ),
            ],
            outputs=[BlendSocket.Output(display_name="blend", tooltip="Connect to a sampler.")],
        )

    @classmethod
    def execute(cls, blend: LoRABlend | Basis, alignment: float, until: float = 1.0) -> io.NodeOutput:
        """Scale the blend's distance from the base, end it early, and show its coefficients."""
        blend = blend_of(blend).aligned(alignment).cut(until)
        return shown(blend.describe(), blend)


class BlendRegion(io.ComfyNode):
    """A blend where a mask says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendRegion",
            display_name="Blend Region",
            category=CATEGORY,
            description="A blend inside a mask, another blend or the base model outside of it.",
            search_aliases=["regional blend", "mask", "paint reward", "region"],
            **CACHED_TOO,
            inputs=[
                blend_input("blend", "What acts where the mask is white: a blend, or a single reward LoRA."),
                io.Mask.Input(
                    "mask",
                    tooltip="White: the blend. Black: what is connected to elsewhere. Grey: a mixture. Any resolution; "
                    "one mask for all images, or one per image.",
                ),
                blend_input(
                    "elsewhere",
                    "What acts outside of the mask: another blend, or another Blend Region to paint several. "
                    "Not connected: the base model.",
                    optional=True,
                ),
            ],
            outputs=[BlendSocket.Output(display_name="blend", tooltip="Connect to a sampler, or to KL Interpolate.")],
        )

    @classmethod
    def execute(
        cls, blend: LoRABlend | Basis, mask: Tensor, elsewhere: LoRABlend | Basis | None = None
    ) -> io.NodeOutput:
        """Paint the blend over what lies below."""
        blend = blend_of(blend)
        if blend.regions:
            raise BlendError(
                "a region came into the input blend. Connect a blend there, and the other region to elsewhere."
            )
        inside, outside = joined(blend, blend.aligned(0) if elsewhere is None else blend_of(elsewhere))
        painted = replace(outside, regions=(*outside.regions, (mask.detach().cpu(), inside.schedule)))
        return shown(painted.describe(), painted)


class ApplyRewardLoRAs(io.ComfyNode):
    """Load, weigh and apply in one node; for anything richer there are Load Reward LoRA, Blend Weights, Apply Blend."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        names = [NO_FILE, *lora_names()]
        return io.Schema(
            node_id="DiffusionBlendApplyLoRAs",
            display_name="Apply Reward LoRAs",
            category=CATEGORY,
            description="Several reward LoRAs on a model: a file and a weight each, and one dial for how far from the "
            "base. The model that goes in stays as it is.",
            search_aliases=["lora stack", "power lora loader", "multi lora", "reward loras", "load loras", "lora list"],
            **CACHED_TOO,
            inputs=[
                model_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far from the base model (alignment). 0: the base. 1: as trained. 2: twice as far.",
                ),
                io.Combo.Input(
                    "evaluation",
                    options=list(WAYS),
                    tooltip="exact: the predictions are blended, every LoRA at every step (cost: their number). "
                    "merged: all are added up in one prediction, as stacked LoRAs are, at the cost of none. Apply "
                    "Blend has more.",
                ),
                *(entry for i in range(1, MOST_ROWS + 1) for entry in _row_inputs(i, names)),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to any sampler."),
                BlendSocket.Output(display_name="blend", tooltip="The same as a blend, for Blend Sweep and others."),
                io.String.Output(
                    display_name="loras",
                    tooltip="<lora:name:weight> of every row that is on, and the files' hashes, as sites for sharing "
                    "images read them.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, strength: float, evaluation: str, **rows) -> io.NodeOutput:
        """Load the rows that are on, blend them by their weights, and apply the blend."""
        chosen = list(_rows_in_use(rows))
        if not chosen:
            raise BlendError("no row has a file and is on, so that nothing is blended. Choose a file in one of them.")
        bases = tuple(reward_lora(name) for name, _ in chosen)
        blend = LoRABlend.of(bases, normalised([weight for _, weight in chosen]), alignment=strength)
        applied = apply_blend(model, blend, WAYS[evaluation], "auto", seed=0)
        (coefficients,) = blend.coefficients(1)
        return shown(applied.report, applied.model, blend, tags(bases, coefficients[0, 1:].tolist()))

    @classmethod
    def fingerprint_inputs(cls, **rows) -> tuple:
        """Changes when a file of a row that is on does."""
        return tuple(file_facts(name) for name, _ in _rows_in_use(rows))


def tags(loras: Sequence[RewardLoRA], coefficients: Sequence[float]) -> str:
    """A line of <lora:name:coefficient>, and one with the first ten digits of the files' SHA-256."""
    pairs = zip((lora.adapter.label for lora in loras), coefficients, strict=True)
    line = " ".join(f"<lora:{label}:{coefficient:.4g}>" for label, coefficient in pairs)
    hashes = ", ".join(f"{lora.adapter.label}: {sha256(lora.adapter.path)[:10]}" for lora in loras)
    return f'{line}\nLora hashes: "{hashes}"'


def _row_inputs(i: int, names: list[str]) -> list[io.Input]:
    """The row's file, whether it is on, and its weight."""
    return [
        io.Combo.Input(f"lora_{i}", options=names, tooltip="A file in models/loras; none: no LoRA in this row."),
        io.Boolean.Input(f"on_{i}", default=True, tooltip="Off: this row is left out, and its weight with it."),
        io.Float.Input(
            f"weight_{i}",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="How much of this reward. The weights of the rows that are on are divided by their sum, so that "
            "1, 1 is half of each.",
        ),
    ]


def _rows_in_use(rows: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(file, weight) of every row that has a file and is on."""
    for i in range(1, MOST_ROWS + 1):
        name = rows.get(f"lora_{i}") or NO_FILE
        if name != NO_FILE and rows.get(f"on_{i}") is not False:  # None where a link brings it
            yield name, rows.get(f"weight_{i}", 1.0)
