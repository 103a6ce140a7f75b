"""Every setting of a training run: default, unit, consequence, range or choices. What they must be together: rules.py.

Frozen dataclasses, one per table of the TOML file. An unknown key or a value of the wrong type stops the run before
anything is loaded. Imports the standard library alone, so that --help answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..places import last_after, stated, stated_reward
from .fields import POSITIVE, Range, setting
from .toml import read_settings

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class BaseModel:
    """The model to train from. It is also the KL's reference: the same network with the LoRA switched off."""

    path: str = setting("", "Diffusers folder, hub id, .safetensors checkpoint, or toy. Required.", stated)
    config: str = setting(
        "", "For a checkpoint: a diffusers folder of its family, for configuration and tokenizer.", stated
    )
    name: str = setting("", "What the file's header calls the base model; empty: the last part of path.")


def _term(text: str) -> tuple[float, str]:
    weight, _, name = text.partition("*")
    try:
        return float(weight), name.strip()
    except ValueError:
        return math.nan, text


@dataclass(frozen=True)
class RewardChoice:
    """What is to grow."""

    name: str = setting(
        "", "A reward of the library, file.py:function or package.module:function. Required, or sum.", stated_reward
    )
    sum: tuple[str, ...] = setting((), "Instead of name: 'WEIGHT*NAME' of each reward in a weighted sum: a LoRA "
                                       "for one preference, which no dial changes afterwards.",
                                  last_after("*", stated_reward))  # fmt: skip
    label: str = setting("", "What the file's header calls it; empty: its name, or those of the sum.")
    scale: str = setting("none", "Preset of scales (none, diffusion-blend, flow-grpo). A scale divides the KL weight.")
    factor: float = setting(
        1.0, "The reward is multiplied by this. Twice the factor is half the kl_weight.", within=POSITIVE
    )
    watch: tuple[str, ...] = setting((), "Rewards that are only watched at validation: when they fall while the "
                                         "trained one rises, the hacking alarm goes off.", stated_reward)  # fmt: skip
    place: str = setting("every", "Under several processes: every (each holds the reward models and scores its own "
                                  "images) or main (the main process alone holds them and scores the images of all, a "
                                  "pass at a time, while the others wait: memory of one copy). Not main for draft, "
                                  "which needs gradients.", choices=("every", "main"))  # fmt: skip
    weights: tuple[str, ...] = setting((), "Folders with reward weights, as <folder>/<reward>/<file>.", stated)
    download: bool = setting(False, "Download reward weights that are nowhere; off: missing weights stop the run.")

    @property
    def terms(self) -> tuple[tuple[float, str], ...]:
        """(weight, name) of each reward in what is to grow; of a term that cannot be read, (nan, the term)."""
        if not self.sum:
            return ((1.0, self.name),) if self.name else ()
        return tuple(map(_term, self.sum))


@dataclass(frozen=True)
class Prompts:
    """What is sampled."""

    file: str = setting(
        "", "Text file, one prompt per line; or .jsonl with a prompt field. Required (not for dpo).", stated
    )
    validation_file: str = setting("", "Prompts for validation; empty: the first ones of file.", stated)
    pairs: str = setting(
        "", "dpo: folder with pairs.jsonl, lines of prompt, better, worse (paths of images).", stated
    )


@dataclass(frozen=True)
class SamplingSettings:
    """The chain whose likelihood and KL are trained: sample with the same values later."""

    steps: int = setting(
        50, "Denoising steps. Cost grows with it; must divide 1000 for eps and v models.", within=POSITIVE
    )
    eta: float = setting(
        1.0, "DDIM's noise (eps, v models): 1 ancestral. 0 has no likelihood and is refused.", within=Range(0, 1)
    )
    noise_level: float = setting(0.7, "The SDE's noise (flow models), Flow-GRPO's a. 0 has no likelihood.")
    cfg: float = setting(7.5, "Guidance. The guided prediction is the policy, and a basis is aligned at the guidance "
                              "it was trained at. 1 halves the cost. Flux dev takes it as an input of the network (its "
                              "distilled guidance; 3.5 is usual), with no unconditional branch.",
                         within=Range(0))  # fmt: skip
    size: int = setting(0, "Pixels of each side; 0: the model's own. Cost grows with its square.")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter. Its alpha equals its rank, so its scale is 1 for every reader."""

    rank: int = setting(
        4, "Rank of the factors. 4 is enough for one reward on SD 1.5; 16 to 32 for transformers.", within=POSITIVE
    )
    targets: tuple[str, ...] = setting((), "Names of the layers to adapt; empty: the attention's of the family.")


@dataclass(frozen=True)
class Optimisation:
    """How the objective is climbed."""

    learning_rate: float = setting(
        1e-4, "AdamW's. Policy gradient 1e-5 to 3e-4; reward gradient 1e-4 to 1e-3.", within=POSITIVE
    )
    decay: str = setting(
        "constant", "Learning rate over the run; linear and cosine go to 0.", choices=("constant", "linear", "cosine")
    )
    warm_up: int = setting(0, "Updates over which the learning rate grows from 0.")
    betas: tuple[float, ...] = setting((0.9, 0.999), "AdamW's decay of the two moments.")
    weight_decay: float = setting(0.0, "AdamW's. Above 0 it pulls towards the base as the KL does: then kl_weight in "
                                       "the file is too small.")  # fmt: skip
    grad_clip: float = setting(
        1.0, "Largest norm of the gradient; a spike does less harm. Log: gradient_norm.", within=POSITIVE
    )
    average: float = setting(0.0, "Decay of a running average of the LoRA, which is then what is validated and kept. "
                                  "0.95 remembers about 20 updates: less KL spent on noise. 0: off.",
                             within=Range(0, 1, open_high=True))  # fmt: skip
    images_per_pass: int = setting(4, "Images per pass through the network, per process. Memory grows with it; the "
                                      "result does not depend on it but for rounding.", within=POSITIVE)  # fmt: skip
    precision: str = setting(
        "no", "Of the frozen weights; no is float32, in which the LoRA stays.", choices=("no", "bf16", "fp16")
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, a third "
                                                  "more time. Worth it for draft.")  # fmt: skip


@dataclass(frozen=True)
class PolicyGradientSettings:
    """dpok and grpo: the likelihood of samples grows with their advantage."""

    clip_range_mean_dims: float = setting(1e-4, "PPO's clip, on the likelihood ratio of one step with its logarithm "
                                                "averaged over latent dimensions. Large: rough.",
                                          within=POSITIVE)  # fmt: skip
    trained_steps: int = setting(0, "Steps of a trajectory that get a gradient in an update; 0: all. Half of them "
                                    "halve the time of an update and make it noisier.")  # fmt: skip
    standardise: bool = setting(True, "Divide the loss by the running spread of rewards, so that learning rate and "
                                      "clip mean the same for every reward. The optimum does not change.")  # fmt: skip
    value_baseline: bool = setting(True, "dpok: learn V(x_t, prompt, t) as the baseline; off: the batch's mean.")
    value_learning_rate: float = setting(1e-4, "dpok: Adam's, for the value network.")
    value_updates: int = setting(5, "dpok: updates of the value network per epoch, on 256 transitions each.")


@dataclass(frozen=True)
class Draft:
    """draft: gradients of a differentiable reward."""

    through: str = setting("x0", "x0: at random steps, through the step and the x0 predicted after it. last: through "
                                 "the last steps of the chain.", choices=("x0", "last"))  # fmt: skip
    steps: int = setting(5, "x0: steps per update that get a gradient. last: the steps differentiated (K); memory "
                            "grows with it unless gradient_checkpointing is on.")  # fmt: skip
    kl_steps: int = setting(2, "last: earlier steps per update that are charged their KL. 0 leaves them free to "
                               "drift, and kl_weight is then not that of the whole chain.")  # fmt: skip
    first_step: int = setting(0, "x0: the first step that gets a reward gradient; earlier ones are charged their KL "
                                 "alone. Early predictions of x0 say little and can be noisy.")  # fmt: skip


@dataclass(frozen=True)
class Dpo:
    """dpo: offline preference pairs."""

    draws: int = setting(2, "Noise levels drawn per pair and update. More: steadier and slower.", within=POSITIVE)


@dataclass(frozen=True)
class Distil:
    """distil: the exact blend of reward LoRAs, as one LoRA that starts as their merged blend at lora.rank."""

    loras: tuple[str, ...] = setting((), "NAME=PATH of each reward LoRA. Required.", last_after("=", stated))
    weights: tuple[float, ...] = setting((), "One number per LoRA, shares of their sum; empty: all equal.")
    alignment: float = setting(1.0, "0 the base model, 1 as trained, above 1 beyond.")
    steps: int = setting(5, "Visited states of each image that an update learns from, most often those where the "
                            "predictions are furthest apart. More: steadier and slower.", within=POSITIVE)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What a run leaves behind, and when it stops."""

    folder: str = setting("trained", "Folder for the LoRA, checkpoints, log and grids.", stated)
    title: str = setting("", "Name of the LoRA file; empty: the reward's label.")
    author: str = setting("", "Goes into the file's header.")
    dtype: str = setting(
        "float32", "Of the LoRA file. float16: half the size, and small factors lose digits.",
        choices=("float32", "float16"),
    )  # fmt: skip
    checkpoint_every: int = setting(10, "Epochs between checkpoints; the last two are kept. 0: only at the end.")
    validate_every: int = setting(10, "Epochs between validations on fixed prompts and noise. 0: never; then the last "
                                      "state is the result.")  # fmt: skip
    validation_images: int = setting(32, "Images per validation. More: a surer choice of the best state.")
    grid: int = setting(8, "Images in the sample grid written at each validation. 0: none.")
    keep_best: bool = setting(True, "The LoRA written is the one with the best validated objective, reward - "
                                    "kl_weight * KL; off: the last one.")  # fmt: skip
    kl_budget: float = setting(0.0, "Stop when the path KL (nats per image) is above this. 0: no budget.")
    alarm: str = setting("warn", "On reward hacking (trained reward up, a watched one down by two standard errors).",
                         choices=("warn", "stop", "off"))  # fmt: skip
    trackers: tuple[str, ...] = setting((), "Trackers of accelerate, such as tensorboard or wandb, for the figures of "
                                        "log.jsonl. Their packages must be installed; tensorboard's files go to "
                                        "diffusion-blend/ in the folder.")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A run."""

    algorithm: str = setting("dpok", "dpok (policy gradient, learned baseline), grpo (policy gradient, groups), draft "
                                     "(reward gradient), dpo (preference pairs) or distil (the exact blend of reward "
                                     "LoRAs, no reward).",
                             choices=("dpok", "grpo", "draft", "dpo", "distil"))  # fmt: skip
    kl_weight: float = setting(0.0, "Alpha of the papers: J = E[reward] - kl_weight * sum of the steps' KL (sums over "
                                    "dimensions, nats), in units of the reward. Twice as much: half as far from the "
                                    "base. Required (not for distil); it goes into the file, where a blend reads "
                                    "it.")  # fmt: skip
    epochs: int = setting(100, "Rounds of sampling and updating.", within=POSITIVE)
    prompts_per_epoch: int = setting(8, "Prompts drawn per epoch, over all processes. dpo: pairs.", within=POSITIVE)
    images_per_prompt: int = setting(
        4, "Images of each prompt per epoch; grpo compares these with one another.", within=POSITIVE
    )
    updates_per_epoch: int = setting(1, "Optimiser updates an epoch's images are divided into.", within=POSITIVE)
    rewarded_steps: int = setting(0, "dpok, grpo, dpo: first steps of the chain, which learn from rewards; later ones "
                                     "are charged their KL alone. The last steps have by far the largest KL factors "
                                     "and decide little: left in, they are most of the noise. 0: all.")  # fmt: skip
    reuse: int = setting(1, "Times an epoch's trajectories are gone through (not dpo, draft through last). Above 1 is "
                            "cheaper per update and off policy: watch clip_fraction.", within=POSITIVE)  # fmt: skip
    seed: int = setting(0, "One seed, one run: the same prompts, noise and order on any number of processes.")
    base: BaseModel = field(default_factory=BaseModel)
    reward: RewardChoice = field(default_factory=RewardChoice)
    prompts: Prompts = field(default_factory=Prompts)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimisation: Optimisation = field(default_factory=Optimisation)
    policy_gradient: PolicyGradientSettings = field(default_factory=PolicyGradientSettings)
    draft: Draft = field(default_factory=Draft)
    dpo: Dpo = field(default_factory=Dpo)
    distil: Distil = field(default_factory=Distil)
    output: Output = field(default_factory=Output)

    @property
    def images_per_epoch(self) -> int:
        """Over all processes."""
        return self.prompts_per_epoch * (1 if self.algorithm == "dpo" else self.images_per_prompt)

    @property
    def images_per_update(self) -> int:
        """Over all processes."""
        return self.images_per_epoch // self.updates_per_epoch

    @property
    def rewarded(self) -> int:
        """Steps of the chain that learn from rewards, the first ones."""
        return self.rewarded_steps or self.sampling.steps

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.epochs * self.updates_per_epoch * self.reuse


def read_config(files: Sequence[Path | str] = (), assignments: Sequence[str] = (), **changes: Any) -> Config:
    """The settings of TOML files in their order, then of `key=value` texts, then of `changes` (dots as __).

    A file may also be the name of a preset. Raises BlendError for an unknown key or a value of another type.
    """
    return read_settings(Config, PRESETS, files, assignments, **changes)
