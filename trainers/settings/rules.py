"""What settings must be together, which no choice and no range can say. Imports the standard library alone.

A rule takes the settings and the number of processes and answers what came, what was expected and what to do, or an
empty text. --help prints its docstring. Choices and ranges stand with their settings, in config.py.
"""

from __future__ import annotations

import math

from .config import Config
from .fields import check_fields, refusal


def check(config: Config, processes: int = 1) -> None:
    """Raise BlendError with the first setting that is out of its range, or the first rule that is broken."""
    check_fields(config)
    for rule in RULES:
        if objection := rule(config, processes):
            raise refusal(objection)


def _kl_weight(config: Config, processes: int) -> str:
    """kl_weight: above 0. distil: it has none."""
    if config.kl_weight > 0 or config.algorithm == "distil":
        return ""
    return (
        f"kl_weight is {config.kl_weight:g}, expected a number above 0 in units of the reward: a blend is only "
        "defined for bases trained under a KL term. Set kl_weight, such as a hundredth of the reward's spread."
    )


def _base(config: Config, processes: int) -> str:
    """base.path: something."""
    empty = "base.path is empty. Set it to a diffusers folder, a hub id, a checkpoint, or toy."
    return "" if config.base.path else empty


def _one_reward(config: Config, processes: int) -> str:
    """reward.name and reward.sum: one of the two."""
    name, terms = config.reward.name, list(config.reward.sum)
    return f"reward.name is {name!r} and reward.sum is {terms}. Leave one of them empty." if name and terms else ""


def _reward_sum(config: Config, processes: int) -> str:
    """reward.sum: a weight, a star and a reward in every entry."""
    if all(math.isfinite(weight) and name for weight, name in config.reward.terms):
        return ""
    return (
        f"reward.sum is {list(config.reward.sum)}, expected a weight, a star and a reward in each, such as "
        '\'["0.25*pickscore", "0.75*aesthetic"]\'. Correct it.'
    )


def _some_reward(config: Config, processes: int) -> str:
    """dpok, grpo, draft: a reward."""
    if config.algorithm in ("dpo", "distil") or config.reward.terms:
        return ""
    return "reward.name is empty. Set it to a reward; `train --help` says which kinds there are."


def _distil_loras(config: Config, processes: int) -> str:
    """distil: distil.loras, and no reward."""
    if config.algorithm != "distil":
        return ""
    if config.reward.terms or config.reward.watch:
        named = ", ".join((*(name for _, name in config.reward.terms), *config.reward.watch))
        return f"the reward {named} came, but distil learns from the blend alone. Leave it out; score the file later."
    if not all(all(lora.partition("=")) for lora in config.distil.loras):
        return f"distil.loras is {list(config.distil.loras)}, expected NAME=PATH in each. Correct it."
    return "" if config.distil.loras else "distil.loras is empty. Name the reward LoRAs of the blend, NAME=PATH each."


def _distil_steps(config: Config, processes: int) -> str:
    """distil: distil.steps at most sampling.steps."""
    steps, learnt = config.sampling.steps, config.distil.steps
    if config.algorithm != "distil" or learnt <= steps:
        return ""
    return f"distil.steps is {learnt}, above sampling.steps ({steps}). Lower it."


def _reward_place(config: Config, processes: int) -> str:
    """draft: reward.place every."""
    if config.algorithm != "draft" or config.reward.place != "main":
        return ""
    return (
        "reward.place is main, but draft climbs the reward's gradient, which does not cross processes. Set "
        "reward.place to every, or choose dpok or grpo."
    )


def _prompts(config: Config, processes: int) -> str:
    """all but dpo: prompts.file. dpo: prompts.pairs."""
    if config.algorithm == "dpo":
        empty = "prompts.pairs is empty. For dpo set it to a folder that holds pairs.jsonl."
        return "" if config.prompts.pairs else empty
    return "" if config.prompts.file else "prompts.file is empty. Set it to a text file with one prompt per line."


def _updates(config: Config, processes: int) -> str:
    """updates_per_epoch: a divisor of the images per epoch, prompts_per_epoch * images_per_prompt (dpo: pairs)."""
    if config.images_per_epoch % config.updates_per_epoch == 0:
        return ""
    return (
        f"{config.images_per_epoch} images per epoch do not divide into {config.updates_per_epoch} updates. Change "
        "prompts_per_epoch, images_per_prompt or updates_per_epoch."
    )


def _passes(config: Config, processes: int) -> str:
    """optimisation.images_per_pass times the processes: a divisor of the images per update."""
    per_update, per_pass = config.images_per_update, config.optimisation.images_per_pass
    if per_update % (per_pass * processes) == 0:
        return ""
    return (
        f"{per_update} images per update do not divide into passes of {per_pass} images on {processes} "
        f"process{'es' if processes > 1 else ''}. Change optimisation.images_per_pass or the images per epoch."
    )


def _groups(config: Config, processes: int) -> str:
    """grpo: images_per_prompt 2 or more."""
    if config.algorithm != "grpo" or config.images_per_prompt >= 2:
        return ""
    return "images_per_prompt is 1, expected 2 or more: grpo compares images of one prompt. Raise it, or use dpok."


def _reuse(config: Config, processes: int) -> str:
    """dpo, draft through last: reuse 1."""
    stored = config.algorithm != "dpo" and (config.algorithm, config.draft.through) != ("draft", "last")
    if stored or config.reuse == 1:
        return ""
    return f"reuse is {config.reuse}, but {config.algorithm} stores no trajectories here. Set reuse to 1."


def _trained_steps(config: Config, processes: int) -> str:
    """dpok, grpo: policy_gradient.trained_steps at most sampling.steps."""
    steps, trained = config.sampling.steps, config.policy_gradient.trained_steps
    if config.algorithm not in ("dpok", "grpo") or trained <= steps:
        return ""
    return f"policy_gradient.trained_steps is {trained}, above sampling.steps ({steps}). Lower it, or 0 for all."


def _rewarded_steps(config: Config, processes: int) -> str:
    """rewarded_steps: 0 (all) to sampling.steps; draft: 0."""
    steps, rewarded = config.sampling.steps, config.rewarded_steps
    if not 0 <= rewarded <= steps:
        return f"rewarded_steps is {rewarded}, expected 0 (all) to sampling.steps ({steps}). Change it."
    if config.algorithm != "draft" or not rewarded:
        return ""
    return (
        f"rewarded_steps is {rewarded}, but draft has settings of its own for that (draft.first_step, draft.steps). "
        "Set rewarded_steps to 0."
    )


def _draft_steps(config: Config, processes: int) -> str:
    """draft: draft.steps 1 to sampling.steps."""
    steps = config.sampling.steps
    if config.algorithm != "draft" or 1 <= config.draft.steps <= steps:
        return ""
    return f"draft.steps is {config.draft.steps}, expected 1 to sampling.steps ({steps}). Change it."


def _kl_steps(config: Config, processes: int) -> str:
    """draft through last: draft.kl_steps at most the steps before the differentiated ones."""
    draft, early = config.draft, config.sampling.steps - config.draft.steps
    if (config.algorithm, draft.through) != ("draft", "last") or draft.kl_steps <= early:
        return ""
    return f"draft.kl_steps is {draft.kl_steps}, above the {early} steps before the differentiated ones. Lower it."


def _noise(config: Config, processes: int) -> str:
    """sampling.eta and sampling.noise_level: not 0. distil: either may be."""
    if config.algorithm == "distil" or (config.sampling.eta and config.sampling.noise_level):
        return ""
    return (
        "sampling.eta or sampling.noise_level is 0: then no step has a likelihood and the KL is not defined. Train "
        "with eta 1 (noise_level 0.7); sample as you like later."
    )


RULES = (
    _kl_weight,
    _base,
    _one_reward,
    _reward_sum,
    _some_reward,
    _distil_loras,
    _distil_steps,
    _reward_place,
    _prompts,
    _updates,
    _passes,
    _groups,
    _reuse,
    _trained_steps,
    _rewarded_steps,
    _draft_steps,
    _kl_steps,
    _noise,
)
