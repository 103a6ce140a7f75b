"""Every setting of a training run, with default, unit and consequence; TOML files and --set key=value fill them.

Frozen dataclasses, one per table of the TOML file. An unknown key or a value of the wrong type stops the run before
anything is loaded. Imports the standard library alone, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..places import Stated, last_after, stated, stated_reward

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"
ALGORITHMS = ("dpok", "grpo", "draft", "dpo")


def setting(default: Any, help: str, place: Stated | None = None) -> Any:
    """A field with its help. place: for paths, how a file that is passed on states them."""
    return field(default=default, metadata={"help": help, "place": place})


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
    factor: float = setting(1.0, "The reward is multiplied by this. Twice the factor is half the kl_weight.")
    watch: tuple[str, ...] = setting((), "Rewards that are only watched at validation: when they fall while the "
                                         "trained one rises, the hacking alarm goes off.", stated_reward)  # fmt: skip
    place: str = setting("every", "Under several processes: every (each holds the reward models and scores its own "
                                  "images) or main (the main process alone holds them and scores the images of all, a "
                                  "pass at a time, while the others wait: memory of one copy). Not main for draft, "
                                  "which needs gradients.")  # fmt: skip
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

    steps: int = setting(50, "Denoising steps. Cost grows with it; must divide 1000 for eps and v models.")
    eta: float = setting(1.0, "DDIM's noise (eps, v models): 1 ancestral. 0 has no likelihood and is refused.")
    noise_level: float = setting(0.7, "The SDE's noise (flow models), Flow-GRPO's a. 0 has no likelihood.")
    cfg: float = setting(7.5, "Guidance. The guided prediction is the policy, and a basis is aligned at the guidance "
                              "it was trained at. 1 halves the cost. Flux dev takes it as an input of the network (its "
                              "distilled guidance; 3.5 is usual), with no unconditional branch.")  # fmt: skip
    size: int = setting(0, "Pixels of each side; 0: the model's own. Cost grows with its square.")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter. Its alpha equals its rank, so its scale is 1 for every reader."""

    rank: int = setting(4, "Rank of the factors. 4 is enough for one reward on SD 1.5; 16 to 32 for transformers.")
    targets: tuple[str, ...] = setting((), "Names of the layers to adapt; empty: the attention's of the family.")


@dataclass(frozen=True)
class Optimisation:
    """How the objective is climbed."""

    learning_rate: float = setting(1e-4, "AdamW's. Policy gradient 1e-5 to 3e-4; reward gradient 1e-4 to 1e-3.")
    decay: str = setting("constant", "Learning rate over the run: constant, linear or cosine (to 0).")
    warm_up: int = setting(0, "Updates over which the learning rate grows from 0.")
    betas: tuple[float, ...] = setting((0.9, 0.999), "AdamW's decay of the two moments.")
    weight_decay: float = setting(0.0, "AdamW's. Above 0 it pulls towards the base beside the KL: then kl_weight in "
                                       "the file is too small.")  # fmt: skip
    grad_clip: float = setting(1.0, "Largest norm of the gradient; a spike does less harm. Log: gradient_norm.")
    average: float = setting(0.0, "Decay of a running average of the LoRA, which is then what is validated and kept. "
                                  "0.95 remembers about 20 updates: less KL spent on noise. 0: off.")  # fmt: skip
    images_per_pass: int = setting(4, "Images per pass through the network, per process. Memory grows with it; the "
                                      "result does not depend on it but for rounding.")  # fmt: skip
    precision: str = setting("no", "no (float32), bf16 or fp16 for the frozen weights; the LoRA stays in float32.")
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, a third "
                                                  "more time. Worth it for draft.")  # fmt: skip


@dataclass(frozen=True)
class PolicyGradient:
    """dpok and grpo: the likelihood of samples grows with their advantage."""

    clip_range_mean_dims: float = setting(1e-4, "PPO's clip, on the likelihood ratio of one step with its logarithm "
                                                "averaged over latent dimensions. Large: rough.")  # fmt: skip
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
                                 "the last steps of the chain.")  # fmt: skip
    steps: int = setting(5, "x0: steps per update that get a gradient. last: the steps differentiated (K); memory "
                            "grows with it unless gradient_checkpointing is on.")  # fmt: skip
    kl_steps: int = setting(2, "last: earlier steps per update that are charged their KL. 0 leaves them free to "
                               "drift, and kl_weight is then not that of the whole chain.")  # fmt: skip
    first_step: int = setting(0, "x0: the first step that gets a reward gradient; earlier ones are charged their KL "
                                 "alone. Early predictions of x0 say little and can be noisy.")  # fmt: skip


@dataclass(frozen=True)
class Dpo:
    """dpo: offline preference pairs."""

    draws: int = setting(2, "Noise levels drawn per pair and update. More: steadier and slower.")


@dataclass(frozen=True)
class Output:
    """What a run leaves behind, and when it stops."""

    folder: str = setting("trained", "Folder for the LoRA, checkpoints, log and grids.", stated)
    title: str = setting("", "Name of the LoRA file; empty: the reward's label.")
    author: str = setting("", "Goes into the file's header.")
    dtype: str = setting(
        "float32", "float32 or float16, of the LoRA file. Half the size, and small factors lose digits."
    )
    checkpoint_every: int = setting(10, "Epochs between checkpoints; the last two are kept. 0: only at the end.")
    validate_every: int = setting(10, "Epochs between validations on fixed prompts and noise. 0: never; then the last "
                                      "state is the result.")  # fmt: skip
    validation_images: int = setting(32, "Images per validation. More: a surer choice of the best state.")
    grid: int = setting(8, "Images in the sample grid written at each validation. 0: none.")
    keep_best: bool = setting(True, "The LoRA written is the one with the best validated objective, reward - "
                                    "kl_weight * KL; off: the last one.")  # fmt: skip
    kl_budget: float = setting(0.0, "Stop when the path KL (nats per image) is above this. 0: no budget.")
    alarm: str = setting("warn", "On reward hacking (trained reward up, a watched one down by two standard errors): "
                                 "warn, stop or off.")  # fmt: skip
    trackers: tuple[str, ...] = setting((), "Trackers of accelerate, such as tensorboard or wandb, for the figures of "
                                        "log.jsonl. Their packages must be installed; tensorboard's files go to "
                                        "diffusion-blend/ in the folder.")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A run."""

    algorithm: str = setting("dpok", "dpok (policy gradient, learned baseline), grpo (policy gradient, groups), draft "
                                     "(reward gradient) or dpo (preference pairs).")  # fmt: skip
    kl_weight: float = setting(0.0, "Alpha of the papers: J = E[reward] - kl_weight * sum of the steps' KL (sums over "
                                    "dimensions, nats), in units of the reward. Twice as much: half as far from the "
                                    "base. Required; it goes into the file, where a blend reads it.")  # fmt: skip
    epochs: int = setting(100, "Rounds of sampling and updating.")
    prompts_per_epoch: int = setting(8, "Prompts drawn per epoch, over all processes. dpo: pairs.")
    images_per_prompt: int = setting(4, "Images of each prompt per epoch; grpo compares these with one another.")
    updates_per_epoch: int = setting(1, "Optimiser updates an epoch's images are divided into.")
    rewarded_steps: int = setting(0, "dpok, grpo, dpo: first steps of the chain, which learn from rewards; later ones "
                                     "are charged their KL alone. The last steps have by far the largest KL factors "
                                     "and decide little: left in, they are most of the noise. 0: all.")  # fmt: skip
    reuse: int = setting(1, "Times an epoch's trajectories are gone through (dpok, grpo, draft through x0). Above 1 is "
                            "cheaper per update and off policy: watch clip_fraction.")  # fmt: skip
    seed: int = setting(0, "One seed, one run: the same prompts, noise and order on any number of processes.")
    base: BaseModel = field(default_factory=BaseModel)
    reward: RewardChoice = field(default_factory=RewardChoice)
    prompts: Prompts = field(default_factory=Prompts)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimisation: Optimisation = field(default_factory=Optimisation)
    policy_gradient: PolicyGradient = field(default_factory=PolicyGradient)
    draft: Draft = field(default_factory=Draft)
    dpo: Dpo = field(default_factory=Dpo)
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


def fields(table: Any = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every setting, in order."""
    hints = typing.get_type_hints(table)
    for each in dataclasses.fields(table):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from fields(hints[each.name], f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each


def settings_help(table: type, presets: Path, what: str) -> str:
    """Every setting of `table` with its default and what it does, and the files of `presets`; what: their heading."""
    lines = ["", "Settings (in a TOML file as tables, or as --set key=value), with their defaults:", ""]
    for key, each in fields(table):
        default = '""' if each.default == "" else each.default
        lines += [f"  {key} = {default}", f"      {each.metadata['help']}"]
    names = ", ".join(sorted(file.stem for file in presets.glob("*.toml")))
    return "\n".join([*lines, "", f"{what}: {names}.", ""])


def read_config(files: Sequence[Path | str] = (), assignments: Sequence[str] = (), **changes: Any) -> Config:
    """The settings of TOML files in their order, then of `key=value` texts, then of `changes` (dots as __).

    A file may also be the name of a preset. Raises BlendError for an unknown key or a value of another type.
    """
    return read_settings(Config, PRESETS, files, assignments, **changes)


def read_settings(
    table: type, presets: Path, files: Sequence[Path | str], assignments: Sequence[str], **changes: Any
) -> Any:
    """The same for any dataclass of settings. presets: a folder of TOML files that go by their names."""
    flat: dict[str, tuple[Any, str]] = {}
    for file in files:
        flat |= {key: (value, str(file)) for key, value in _flattened(_read_toml(file, presets))}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise _error(f"--set came with {text!r}, expected key=value, such as sampling.steps=20.")
        flat[key.strip()] = (_literal(value.strip()), "--set")
    flat |= {key.replace("__", "."): (value, "the call") for key, value in changes.items()}
    return _build(table, flat)


def to_flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    flat = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        flat |= (
            to_flat(value, f"{prefix}{each.name}.") if dataclasses.is_dataclass(value) else {prefix + each.name: value}
        )
    return flat


def stated_settings(config: Any, folder: Path) -> Any:
    """The settings as a file in `folder` states them: paths relative to it, or by their names; see places.py."""
    changes = {}
    for each in dataclasses.fields(config):
        value, place = getattr(config, each.name), each.metadata.get("place")
        if dataclasses.is_dataclass(value):
            changes[each.name] = stated_settings(value, folder)
        elif place is not None:
            several = isinstance(value, tuple)
            changes[each.name] = tuple(place(one, folder) for one in value) if several else place(value, folder)
    return dataclasses.replace(config, **changes)


def _build(table: type, flat: Mapping[str, tuple[Any, str]]) -> Any:
    known = dict(fields(table))
    for key, (_, source) in flat.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            meant = f" Did you mean {', '.join(near)}?" if near else ""
            raise _error(f"{source} has the setting {key!r}, which is unknown.{meant} `--help` lists them all.")
    return _filled(table, flat, "")


def _filled(table: type, flat: Mapping[str, tuple[Any, str]], prefix: str) -> Any:
    hints, values = typing.get_type_hints(table), {}
    for each in dataclasses.fields(table):
        key, kind = prefix + each.name, hints[each.name]
        if dataclasses.is_dataclass(kind):
            values[each.name] = _filled(kind, flat, f"{key}.")
        elif key in flat:
            values[each.name] = _typed(*flat[key], key, kind)
    return table(**values)


def _typed(value: Any, source: str, key: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, source, key, typing.get_args(kind)[0]) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else "a list"
    raise _error(f"{source}: {key} is {value!r}, expected {expected}. Correct it; `--help` explains each.")


def _read_toml(file: Path | str, presets: Path) -> dict[str, Any]:
    path = Path(file).expanduser()
    if not path.suffix and (presets / f"{file}.toml").is_file():
        path = presets / f"{file}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in presets.glob("*.toml")))
        raise _error(f"{file} is neither a preset ({known}) nor a TOML file. Give one of these.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _error(f"{path} is not valid TOML: {error}. Correct it.") from error


def _flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _literal(text: str) -> Any:
    """A value as TOML would read it; what TOML cannot read is text, so that paths need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _error(message: str) -> Exception:
    from ...blend_core.errors import BlendError  # here, because it brings torch along

    return BlendError(message)
