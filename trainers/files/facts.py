"""The facts of a run that its LoRA file states, under `diffusion_blend.` in the header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...blend_core.adapters.exporting import parts_of
from ..data.prompts import prompts_sha256
from ..model.base import base_sha256
from ..model.distilled import DistilledPolicy, Parts
from ..model.lora_policy import LoraPolicy
from ..rewards import Rewards
from ..settings.config import Config
from .lora import training_command


def facts_of(
    config: Config, policy: LoraPolicy, rewards: Rewards, prompts: Sequence[str], *, title: str, epochs: int
) -> dict[str, Any]:
    """The facts by name, for files.lora.header. prompts: all of the set.  epochs: that were done."""
    base = policy.base
    flow = base.family.transition == "flow"
    name = config.base.name or Path(config.base.path.rstrip("/")).name
    return {
        "title": title,
        "author": config.output.author,
        **(_of_blend(policy.parts, config, name) if isinstance(policy, DistilledPolicy) else {}),
        **({} if isinstance(policy, DistilledPolicy) else _of_reward(rewards, config, title, name)),
        "algorithm": config.algorithm,
        "transition": base.family.transition,
        "eta": None if flow else config.sampling.eta,
        "noise_level": config.sampling.noise_level if flow else None,
        "sampling_steps": config.sampling.steps,
        "cfg": config.sampling.cfg,
        "guidance": "distilled" if base.distilled else "",
        "size": base.size,
        "base_model": name,
        "base_sha256": base_sha256(config),
        "prediction_type": base.pipe.scheduler.config.get("prediction_type", ""),
        "rank": config.lora.rank,
        "step": epochs * config.updates_per_epoch * config.reuse,
        "images_seen": epochs * config.images_per_epoch,
        "learning_rate": config.optimisation.learning_rate,
        "seed": config.seed,
        "prompts_sha256": prompts_sha256(prompts),
        "command": training_command(),
        "version": _version(),
    }


def _of_reward(rewards: Rewards, config: Config, title: str, base: str) -> dict[str, Any]:
    standardised = config.algorithm in ("dpok", "grpo") and config.policy_gradient.standardise
    return {
        "description": f"Reward LoRA for {title} on {base}, KL weight {config.kl_weight:g}",
        "rewards": rewards.facts(),
        "kl_weight": config.kl_weight,
        "kl_form": "exact",
        "advantage": "divided by the running spread of returns, and the KL term with it" if standardised else "",
    }


def _of_blend(parts: Parts, config: Config, base: str) -> dict[str, Any]:
    """What is distilled: of each LoRA name, file, digest and coefficient, as `diffusion-blend export` writes them."""
    paths = [adapter.path for adapter in parts.adapters]
    return {
        "description": f"One LoRA distilled from the exact blend {parts.blend.formula()} on {base}",
        "parts": parts_of(parts.blend.names, paths, parts.coefficients),
        "weights": list(parts.blend.preference),
        "alignment": parts.blend.alignment,
        "distil_start": "merged blend, by singular values",
        "distil_steps": config.distil.steps,
        "distil_reuse": config.reuse,
    }


def _version() -> str:
    from ... import __version__

    return __version__
