"""The toy studio for the trainers: base toy, prompts toy and toy:open; rewards, and LoRAs to distil, toy:NAME."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...blend_core.errors import BlendError
from ...trainers.settings.config import Config, read_config
from . import BASE, MARK, STUDIO, place

if TYPE_CHECKING:
    from pathlib import Path

    from ...trainers.model.lora_policy import LoraPolicy
    from ...trainers.rewards import Rewards

PROMPTS = {"toy": "prompts.txt", "toy:open": "prompts_open.txt"}  # the second leave backgrounds open


def resolved(config: Config) -> tuple[Config, Rewards | None]:
    """The configuration with `toy` replaced by the studio's places, and its rewards where one of them is named."""
    if config.base.path == BASE:
        base = replace(config.base, path=str(STUDIO / "base"), name=config.base.name or "diffusion-blend toy studio")
        config = replace(config, base=base)
    if config.prompts.file in PROMPTS:
        config = replace(config, prompts=replace(config.prompts, file=str(STUDIO / PROMPTS[config.prompts.file])))
    loras = [(name, place(path)) for name, _, path in (lora.partition("=") for lora in config.distil.loras)]
    config = replace(config, distil=replace(config.distil, loras=tuple(map("=".join, loras))))
    named = (config.reward.name, *config.reward.sum, *config.reward.watch)
    return config, _rewards(config) if any(MARK in name for name in named) else None


def toy_policy(lora: Path | None = None) -> LoraPolicy:
    """The studio's model with a fresh LoRA, or the one of a file, sampled as the preset says."""
    from ...trainers.model.base import Base
    from ...trainers.model.lora_policy import LoraPolicy
    from .model import load_base

    policy = LoraPolicy(Base(load_base()), read_config(["toy"]))
    if lora is not None:
        policy.unwrapped.delete_adapters("default")
        policy.base.pipe.load_lora_weights(lora)
    return policy


def _rewards(config: Config) -> Rewards:
    """The studio's rewards, in units of the base's spread, times the scale that makes the bases move equally far."""
    from ...blend_core.rewards import RewardScale
    from ...trainers.rewards import Term, open_rewards
    from .rewards import toy_rewards

    rewards = toy_rewards()

    def load(name: str) -> Term:
        label = name.removeprefix(MARK)
        if not name.startswith(MARK) or label not in rewards:
            listed = ", ".join(MARK + label for label in rewards)
            raise BlendError(
                f"the reward {name!r} came with the toy studio's, which are {listed}. Use these together, or none."
            )
        reward = rewards[label]
        factor = reward.scale / reward.std
        return Term(label, reward, RewardScale(factor, -reward.mean * factor))

    return open_rewards(config, "cpu", load=load)
