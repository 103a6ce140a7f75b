"""Finding the blend a person likes, by clicks (blend_core/duels)."""

from __future__ import annotations

from comfy_api.latest import io

from ..blend_core import BlendError
from ..blend_core.duels import FEWEST, MOST, parse_duels, parse_lines
from .inputs import CATEGORY, target_kl_weight_input
from .output import CACHED_TOO, shown
from .types import Basis, BlendSocket, LoRABlend, RewardLoRASocket


class BlendDuel(io.ComfyNode):
    """Two blends to compare, and the best one so far."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        template = io.Autogrow.TemplatePrefix(
            RewardLoRASocket.Input("lora", tooltip="A reward LoRA; a new slot appears with each one you connect."),
            prefix="lora_",
            min=FEWEST,
            max=MOST,
        )
        return io.Schema(
            node_id="DiffusionBlendDuel",
            display_name="Blend Duel",
            category=CATEGORY,
            description="Finds the blend you like: shows two, you say which image is better, and after about ten "
            "answers for three rewards it knows your weights.",
            search_aliases=["find my blend", "preference", "compare", "A/B test", "duel", "taste"],
            **CACHED_TOO,
            inputs=[
                io.Autogrow.Input("loras", template=template),
                io.String.Input(
                    "answers",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What you answered so far, one line per pair; the buttons write it. A: the first image is "
                    "better, B: the second, =: neither, each about the pair that the lines above lead to. Or with the "
                    "weights: 0.7, 0.3 > 0.2, 0.8. Empty: start anew.",
                ),
                io.Float.Input(
                    "noise",
                    default=0.05,
                    min=0.001,
                    max=10.0,
                    step=0.01,
                    round=False,
                    advanced=True,
                    tooltip="How often you click the wrong one of two close images. 0.05: about one click in five. "
                    "0.01: hardly ever, so that fewer answers are needed. 1: each answer says little.",
                ),
                io.Int.Input(
                    "pairs_seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    advanced=True,
                    tooltip="Another number asks about other pairs. Lines that are A, B or = alone belong to the "
                    "number that they were given under.",
                ),
                target_kl_weight_input("As in Blend Weights. 0: the average of the LoRAs', by their weights."),
            ],
            outputs=[
                BlendSocket.Output(display_name="blend_a", tooltip="The first of the pair: to one Blended KSampler."),
                BlendSocket.Output(
                    display_name="blend_b", tooltip="The second: to another Blended KSampler with the same seed."
                ),
                BlendSocket.Output(display_name="best", tooltip="The weights you like best, as far as is known."),
                io.String.Output(
                    display_name="estimate", tooltip="Those weights, how sure they are, and the pair that is asked."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        loras: dict[str, Basis | None],
        answers: str,
        noise: float = 0.05,
        pairs_seed: int = 0,
        target_kl_weight: float = 0.0,
    ) -> io.NodeOutput:
        """Read the answers, choose the next pair, and show what is known."""
        bases = tuple(lora for lora in loras.values() if lora is not None)
        taste = parse_duels(answers, len(bases), noise, pairs_seed)
        preferences = (*taste.pair, taste.preference)
        target = target_kl_weight or None
        first, second, best = (LoRABlend.of(bases, weights, target_kl_weight=target) for weights in preferences)
        sides = [_weights(preference) for preference in taste.pair]
        text = f"{taste.describe(best.names)}\nA: {sides[0]}\nB: {sides[1]}"
        return shown(text, first, second, best, text, editor={"pair": sides})

    @classmethod
    def validate_inputs(cls, answers: str | None = None, loras: dict | None = None) -> bool | str:
        """Refuse lines that are no answer before anything runs; None where a link brings them.

        loras: ComfyUI hands growing inputs over whether asked or not.
        """
        try:
            parse_lines(answers or "")
        except BlendError as error:
            return str(error)
        return True


def _weights(preference: tuple[float, ...]) -> str:
    return ", ".join(f"{weight:g}" for weight in preference)
