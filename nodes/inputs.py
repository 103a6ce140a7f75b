"""Inputs that several nodes have, with their tooltips."""

from __future__ import annotations

from comfy_api.latest import io

from .host.apply import EXECUTIONS, SAMPLERS, SCHEDULERS
from .types import BlendSocket, RewardLoRASocket, RewardModelSocket

CATEGORY = "Diffusion Blend"
MOST_REWARDS = 16
BLEND_TOOLTIP = "What to blend, from Blend Weights or KL Interpolate."


def model_input() -> io.Input:
    """The model that is blended."""
    return io.Model.Input("model", tooltip="The base model the reward LoRAs were trained on.")


def blend_input(name: str, tooltip: str, **options) -> io.Input:
    """An input for a blend, or for a single reward LoRA, which is a blend of one; see types.blend_of."""
    return io.MultiType.Input(name, types=[BlendSocket, RewardLoRASocket], tooltip=tooltip, **options)


def kl_weight_input(name: str, tooltip: str, **options) -> io.Input:
    """A KL weight; 0 for none."""
    limits = {"default": 0.0, "min": 0.0, "max": 1e6, "step": 0.0001, "round": False}
    return io.Float.Input(name, **limits, tooltip=tooltip, **options)


def target_kl_weight_input(tooltip: str) -> io.Input:
    """The KL weight that a blend is for; 0 for none."""
    return kl_weight_input("target_kl_weight", tooltip, optional=True, advanced=True)


def execution_input() -> io.Input:
    """How the variants of a step share passes."""
    return io.Combo.Input(
        "execution",
        options=list(EXECUTIONS),
        tooltip="How the rewards of a step are computed: batched is one larger pass, sequential one after another with "
        "no extra memory. auto takes the largest batch that fits. The image is the same up to rounding.",
    )


def seed_input(tooltip: str) -> io.Input:
    """A seed, with the control that changes it after a run."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )


def ksampler_inputs(choose_sampler: bool = True) -> list[io.Input]:
    """KSampler's own inputs, in its order and with its ranges."""
    inputs = [
        seed_input("The random seed of the noise. The same seed gives the same image."),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps; 20 to 30 suit most models."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance; 1 switches it off. Reward LoRAs work best near the value they were "
            "trained with, 5 to 8 for SD 1.5.",
        ),
        io.Combo.Input("sampler_name", options=list(SAMPLERS), tooltip="Any sampler of ComfyUI works."),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), tooltip="How noise is removed over the steps."),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; an empty one for text to image."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="1 starts from pure noise; lower values keep the structure of latent_image.",
        ),
    ]
    return [entry for entry in inputs if choose_sampler or entry.id != "sampler_name"]


def rewards_input(tooltip: str, **options) -> io.Input:
    """Growing slots of reward models."""
    slot = RewardModelSocket.Input("reward", tooltip=tooltip)
    return io.Autogrow.Input(
        "rewards",
        template=io.Autogrow.TemplatePrefix(slot, prefix="reward_", min=1, max=MOST_REWARDS),
        **options,
    )
