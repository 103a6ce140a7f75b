"""Blends that change over the run."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..blend_core import BlendError, Schedule
from ..blend_core.schedules import CURVES, parse_positions
from ..blend_core.windows import Window
from .blends import MOST_BASES
from .inputs import CATEGORY, blend_input
from .output import CACHED_TOO, shown
from .types import Basis, BlendSocket, LoRABlend, blend_of, joined


class BlendSchedule(io.ComfyNode):
    """Blends that change over the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        template = io.Autogrow.TemplatePrefix(
            blend_input("blend", "A blend or reward LoRA, in the order of the run; a new slot appears with each one."),
            prefix="blend_",
            min=2,
            max=MOST_BASES,
        )
        return io.Schema(
            node_id="DiffusionBlendSchedule",
            display_name="Blend Schedule",
            category=CATEGORY,
            description="One blend at the start, another at the end: composition from one reward, texture from "
            "another.",
            search_aliases=["schedule", "keyframes", "blend over time", "crossfade"],
            **CACHED_TOO,
            inputs=[
                io.Autogrow.Input("blends", template=template),
                io.Combo.Input(
                    "curve",
                    options=list(CURVES),
                    tooltip="linear: an even crossfade. smooth: slow at the keyframes. step: each blend holds until "
                    "the next one's position, which costs no evaluation more than the blend itself.",
                ),
                io.String.Input(
                    "positions",
                    default="",
                    tooltip="Where each blend stands in the run, 0 the first step and 1 the last, such as 0, 0.4, 1. "
                    "Empty: at equal distances.",
                ),
            ],
            outputs=[BlendSocket.Output(display_name="blend", tooltip="Connect to a sampler, or to KL Interpolate.")],
        )

    @classmethod
    def execute(cls, blends: dict[str, LoRABlend | Basis | None], curve: str, positions: str = "") -> io.NodeOutput:
        """Build the schedule and show its keyframes."""
        connected = [blend_of(blend) for blend in blends.values() if blend is not None]
        blend = scheduled(connected, curve, parse_positions(positions, len(connected)))
        return shown(blend.describe(), blend)


def scheduled(blends: list[LoRABlend], curve: str, positions: tuple[float, ...] | None) -> LoRABlend:
    """The blends one after another, each expressed over the LoRAs of all. Raises BlendError for a schedule within."""
    if any(not blend.schedule.is_constant or blend.regions for blend in blends):
        raise BlendError(
            "a schedule, a window or a region came where a blend was expected, or a blend that ends early. Connect "
            "Blend Weights or KL Interpolate; regions and windows take schedules, not the other way round, and until "
            "of KL Interpolate is set behind Blend Schedule."
        )
    wide = joined(*blends)
    frames = [blend.schedule.blends[0] for blend in wide]
    schedule = Schedule.even(frames, curve) if positions is None else Schedule(positions, tuple(frames), curve)
    return LoRABlend(schedule, wide[0].bases)


class BlendWindow(io.ComfyNode):
    """A blend in some steps of the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendWindow",
            display_name="Blend Window",
            category=CATEGORY,
            description="A blend in some steps only, such as the first 2 of 8; another blend or the base model in all "
            "others.",
            search_aliases=["window", "start step", "end step", "lora only in first steps", "step range"],
            **CACHED_TOO,
            inputs=[
                blend_input("blend", "What acts in the window: a blend, or a single reward LoRA."),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="The first step of the window, counted from 0 as in KSampler (Advanced).",
                ),
                io.Int.Input(
                    "end_at_step",
                    default=2,
                    min=1,
                    max=10000,
                    tooltip="The step before which the window ends: 0 and 2 are the first two steps. Beyond the run's "
                    "steps: to its end.",
                ),
                io.Int.Input(
                    "fade",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Over how many steps the blend comes and goes, within the window; both blends are "
                    "evaluated there. 0: at once. There is no fade at the run's own beginning and end.",
                ),
                blend_input(
                    "outside",
                    "What acts in all other steps: a blend, or another Blend Window. Not connected: the base model.",
                    optional=True,
                ),
            ],
            outputs=[BlendSocket.Output(display_name="blend", tooltip="Connect to a sampler, or to KL Interpolate.")],
        )

    @classmethod
    def execute(
        cls,
        blend: LoRABlend | Basis,
        start_at_step: int,
        end_at_step: int,
        fade: int = 0,
        outside: LoRABlend | Basis | None = None,
    ) -> io.NodeOutput:
        """Put the blend into its steps and show both."""
        blend = blend_of(blend)
        inside, other = joined(blend, blend.aligned(0) if outside is None else blend_of(outside))
        if inside.regions or other.regions:
            raise BlendError(
                "a region came into a window. Put Blend Window before Blend Region: a region takes windows, not the "
                "other way round."
            )
        window = Window(inside.schedule, other.schedule, start_at_step, end_at_step, fade)
        result = replace(inside, schedule=window)
        return shown(result.describe(), result)
