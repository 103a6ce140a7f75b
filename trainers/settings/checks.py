"""What can be known to be wrong before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...blend_core.errors import BlendError
from .config import ALGORITHMS, Config


def check(config: Config, processes: int = 1) -> None:
    """Raise BlendError with the first thing that cannot work: what came, what was expected, what to do."""
    for message in _complaints(config, processes):
        raise BlendError(message)


def _complaints(config: Config, processes: int) -> Iterator[str]:
    if config.algorithm not in ALGORITHMS:
        yield f"algorithm is {config.algorithm!r}, expected one of {', '.join(ALGORITHMS)}. Set one of them."
    if not config.kl_weight > 0:
        yield (
            f"kl_weight is {config.kl_weight:g}, expected a number above 0 in units of the reward: a blend is only "
            "defined for bases trained under a KL term. Set kl_weight, such as a hundredth of the reward's spread."
        )
    if not config.base.path:
        yield "base.path is empty. Set it to a diffusers folder, a hub id, a checkpoint, or toy."
    yield from _reward(config)
    if config.algorithm == "draft" and config.reward.place == "main":
        yield (
            "reward.place is main, but draft climbs the reward's gradient, which does not cross processes. Set "
            "reward.place to every, or choose dpok or grpo."
        )
    if config.algorithm == "dpo" and not config.prompts.pairs:
        yield "prompts.pairs is empty. For dpo set it to a folder that holds pairs.jsonl."
    if config.algorithm != "dpo" and not config.prompts.file:
        yield "prompts.file is empty. Set it to a text file with one prompt per line."
    yield from _counts(config, processes)
    yield from _ranges(config)


def _reward(config: Config) -> Iterator[str]:
    reward = config.reward
    if reward.name and reward.sum:
        yield f"reward.name is {reward.name!r} and reward.sum is {list(reward.sum)}. Leave one of them empty."
    if not all(math.isfinite(weight) and name for weight, name in reward.terms):
        yield (
            f"reward.sum is {list(reward.sum)}, expected a weight, a star and a reward in each, such as "
            '\'["0.25*pickscore", "0.75*aesthetic"]\'. Correct it.'
        )
    if config.algorithm != "dpo" and not reward.terms:
        yield "reward.name is empty. Set it to a reward; `train --help` says which kinds there are."


def check_chain(config: Config, transition: str) -> None:
    """Raise BlendError where draft.through x0 would mis-state the KL weight.

    It takes the x0 predicted from a state for what the chain makes of it on average. That holds for chains that forget
    their noise, which DDIM at eta 1 is; with less noise the chain's slope is another, by 40% on the tests' flow chain.
    """
    if config.algorithm != "draft" or config.draft.through != "x0":
        return
    if transition == "flow" or config.sampling.eta != 1:
        which = "a flow model" if transition == "flow" else f"sampling.eta {config.sampling.eta:g}"
        raise BlendError(
            f"draft.through is x0 on {which}: there the kl_weight of the file would not be the one trained with. Set "
            "draft.through to last, with draft.steps as many as fit."
        )


def _counts(config: Config, processes: int) -> Iterator[str]:
    per_update, per_pass = config.images_per_update, config.optimisation.images_per_pass
    if config.images_per_epoch % config.updates_per_epoch:
        yield (
            f"{config.images_per_epoch} images per epoch do not divide into {config.updates_per_epoch} updates. Change "
            "prompts_per_epoch, images_per_prompt or updates_per_epoch."
        )
    elif per_update % (per_pass * processes):
        yield (
            f"{per_update} images per update do not divide into passes of {per_pass} images on {processes} "
            f"process{'es' if processes > 1 else ''}. Change optimisation.images_per_pass or the images per epoch."
        )
    if config.algorithm == "grpo" and config.images_per_prompt < 2:
        yield "images_per_prompt is 1, expected 2 or more: grpo compares images of one prompt. Raise it, or use dpok."
    if config.reuse > 1 and (
        config.algorithm == "dpo" or (config.algorithm, config.draft.through) == ("draft", "last")
    ):
        yield f"reuse is {config.reuse}, but {config.algorithm} stores no trajectories here. Set reuse to 1."
    steps, trained = config.sampling.steps, config.policy_gradient.trained_steps
    if config.algorithm in ("dpok", "grpo") and trained > steps:
        yield f"policy_gradient.trained_steps is {trained}, above sampling.steps ({steps}). Lower it, or 0 for all."
    if not 0 <= config.rewarded_steps <= steps:
        yield f"rewarded_steps is {config.rewarded_steps}, expected 0 (all) to sampling.steps ({steps}). Change it."
    if config.algorithm == "draft" and config.rewarded_steps:
        yield (
            f"rewarded_steps is {config.rewarded_steps}, but draft has settings of its own for that (draft.first_step, "
            "draft.steps). Set rewarded_steps to 0."
        )
    if config.algorithm == "draft" and not 1 <= config.draft.steps <= steps:
        yield f"draft.steps is {config.draft.steps}, expected 1 to sampling.steps ({steps}). Change it."
    early = steps - config.draft.steps
    if config.algorithm == "draft" and config.draft.through == "last" and config.draft.kl_steps > early:
        yield (
            f"draft.kl_steps is {config.draft.kl_steps}, above the {early} steps before the differentiated ones. Lower "
            "it."
        )


def _ranges(config: Config) -> Iterator[str]:
    positive = {
        "epochs": config.epochs,
        "prompts_per_epoch": config.prompts_per_epoch,
        "images_per_prompt": config.images_per_prompt,
        "updates_per_epoch": config.updates_per_epoch,
        "sampling.steps": config.sampling.steps,
        "lora.rank": config.lora.rank,
        "optimisation.learning_rate": config.optimisation.learning_rate,
        "optimisation.grad_clip": config.optimisation.grad_clip,
        "optimisation.images_per_pass": config.optimisation.images_per_pass,
        "reuse": config.reuse,
        "policy_gradient.clip_range_mean_dims": config.policy_gradient.clip_range_mean_dims,
        "reward.factor": config.reward.factor,
        "dpo.draws": config.dpo.draws,
    }
    for name, value in positive.items():
        if not value > 0:
            yield f"{name} is {value:g}, expected a number above 0. Correct it."
    if config.sampling.eta == 0 or config.sampling.noise_level == 0:
        yield (
            "sampling.eta or sampling.noise_level is 0: then no step has a likelihood and the KL is not defined. Train "
            "with eta 1 (noise_level 0.7); sample as you like later."
        )
    if not 0 < config.sampling.eta <= 1 or config.sampling.cfg < 0:
        yield f"sampling.eta is {config.sampling.eta:g} and cfg {config.sampling.cfg:g}, expected 0 to 1, 0 or more."
    if not 0 <= config.optimisation.average < 1:
        yield f"optimisation.average is {config.optimisation.average:g}, expected 0 to below 1. Correct it."
    choices = {
        "optimisation.decay": (config.optimisation.decay, ("constant", "linear", "cosine")),
        "optimisation.precision": (config.optimisation.precision, ("no", "bf16", "fp16")),
        "reward.place": (config.reward.place, ("every", "main")),
        "draft.through": (config.draft.through, ("x0", "last")),
        "output.dtype": (config.output.dtype, ("float32", "float16")),
        "output.alarm": (config.output.alarm, ("warn", "stop", "off")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            yield f"{name} is {value!r}, expected one of {', '.join(known)}. Correct it."
