"""Several reward LoRAs on a model by one node: rows of a file and its weight, and one dial."""

from __future__ import annotations

from collections.abc import Iterator

from comfy_api.latest import io

from ..blend_core import BlendError
from ..blend_core.adapters.files import sha256
from ..blend_core.blend import normalised
from ..blend_core.estimators import exact, merged
from .host.apply import apply_blend
from .inputs import CATEGORY, model_input
from .loaders import file_facts, lora_names, reward_lora
from .output import CACHED_TOO, shown
from .types import BlendSocket, LoRABlend, RewardLoRA

MOST_ROWS = 8
WAYS = {"exact": exact, "merged": merged}


class ApplyRewardLoRAs(io.ComfyNode):
    """Load, weigh and apply in one node; for anything richer there are Load Reward LoRA, Blend Weights, Apply Blend."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        rows = io.DynamicCombo.Input(
            "loras",
            options=[io.DynamicCombo.Option(str(count), _rows(count)) for count in range(1, MOST_ROWS + 1)],
            tooltip="How many rows of a file and its weight there are.",
        )
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
                rows,
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to any sampler."),
                BlendSocket.Output(
                    display_name="blend", tooltip="The same as a blend, for Blend Sweep and the others."
                ),
                io.String.Output(
                    display_name="loras",
                    tooltip="<lora:name:weight> of every row that is on, and the files' hashes, as sites for sharing "
                    "images read them.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, strength: float, evaluation: str, loras: dict) -> io.NodeOutput:
        """Load the rows that are on, blend them by their weights, and apply the blend."""
        rows = [(name, weight) for name, on, weight in _read(loras) if on]
        if not rows:
            raise BlendError("no row of loras is on, so that nothing is blended. Switch at least one on.")
        bases = tuple(reward_lora(name) for name, _ in rows)
        blend = LoRABlend.of(bases, normalised([weight for _, weight in rows]), alignment=strength)
        applied = apply_blend(model, blend, WAYS[evaluation], "auto", seed=0)
        return shown(applied.report, applied.model, blend, tags(blend))

    @classmethod
    def fingerprint_inputs(cls, loras: dict | None = None, **_) -> tuple:
        """Changes when a file of a row that is on does."""
        return tuple(file_facts(name) for name, on, _ in _read(loras or {}) if on and name)


def tags(blend: LoRABlend) -> str:
    """A line of <lora:name:coefficient> of the blend's LoRAs, and one with the first ten digits of their SHA-256."""
    (coefficients,) = blend.coefficients(1)
    adapters = [basis.adapter for basis in blend.bases if isinstance(basis, RewardLoRA)]
    numbers = coefficients[0, 1:].tolist()
    line = " ".join(f"<lora:{a.label}:{number:.4g}>" for a, number in zip(adapters, numbers, strict=True))
    hashes = ", ".join(f"{a.label}: {sha256(a.path)[:10]}" for a in adapters)
    return f'{line}\nLora hashes: "{hashes}"'


def _rows(count: int) -> list[io.Input]:
    names = lora_names()
    rows = []
    for i in range(1, count + 1):
        rows += [
            io.Combo.Input(f"lora_{i}", options=names, tooltip="A file in models/loras."),
            io.Boolean.Input(f"on_{i}", default=True, tooltip="Off: this row is left out, and its weight with it."),
            io.Float.Input(
                f"weight_{i}",
                default=1.0,
                min=0.0,
                max=100.0,
                step=0.05,
                tooltip="How much of this reward. The weights of the rows that are on are divided by their sum, so "
                "that 1, 1 is half of each.",
            ),
        ]
    return rows


def _read(loras: dict) -> Iterator[tuple[str, bool, float]]:
    """(file, on, weight) of every row."""
    for i in range(1, int(loras.get("loras") or 0) + 1):
        yield loras[f"lora_{i}"], loras[f"on_{i}"], loras[f"weight_{i}"]
