"""The facts of a run that its LoRA file states, under `diffusion_blend.` in the header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.prompts import prompts_sha256
from ..model.base import Base, base_sha256
from ..rewards import Rewards
from ..settings.config import Config
from .lora import training_command


def facts_of(
    config: Config, base: Base, rewards: Rewards, prompts: Sequence[str], *, title: str, epochs: int
) -> dict[str, Any]:
    """The facts by name, for files.lora.header. prompts: all of the set.  epochs: that were done."""
    flow = base.family.transition == "flow"
    standardised = config.algorithm in ("dpok", "grpo") and config.policy_gradient.standardise
    name = config.base.name or Path(config.base.path.rstrip("/")).name
    return {
        "title": title,
        "author": config.output.author,
        "description": f"Reward LoRA for {title} on {name}, KL weight {config.kl_weight:g}",
        "rewards": rewards.facts(),
        "kl_weight": config.kl_weight,
        "kl_form": "exact",
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
        "advantage": "divided by the running spread of returns, and the KL term with it" if standardised else "",
        "command": training_command(),
        "version": _version(),
    }


def _version() -> str:
    from ... import __version__

    return __version__
