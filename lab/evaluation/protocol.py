"""What an evaluation compares: settings with default, unit and consequence, filled by TOML files and --set key=value.

Imports the standard library alone, so that --help answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...trainers.places import last_after, stated, stated_reward
from ...trainers.settings.config import SamplingSettings
from ...trainers.settings.fields import Range, refusal, setting
from ...trainers.settings.toml import read_settings

PROTOCOLS = Path(__file__).parent / "protocols"


@dataclass(frozen=True)
class Models:
    """The base model and its LoRAs."""

    base: str = setting("", "Diffusers folder, hub id, .safetensors checkpoint, or toy. Required.", stated)
    config: str = setting("", "For a checkpoint: a diffusers folder of its family.", stated)
    loras: tuple[str, ...] = setting((), "NAME=PATH of each reward LoRA, in the order of the preferences. Required.",
                                     last_after("=", stated))  # fmt: skip
    oracles: tuple[str, ...] = setting((), "'0.5, 0.5=PATH' of LoRAs trained for one preference each, for the method "
                                           "oracle.", last_after("=", stated))  # fmt: skip
    distilled: tuple[str, ...] = setting((), "The same of LoRAs distilled from the exact blend of one preference each, "
                                             "for the method distilled.", last_after("=", stated))  # fmt: skip
    export_rank: int = setting(0, "Method export: the most ranks per module; 0: all.", within=Range(0))
    dtype: str = setting("float32", "float32, float16 or bfloat16, of the base model.")


@dataclass(frozen=True)
class EvaluationRewards:
    """What images are scored with."""

    names: tuple[str, ...] = setting((), "The reward of each LoRA, in their order; toy:NAME for the studio's. "
                                         "Required.", stated_reward)  # fmt: skip
    watch: tuple[str, ...] = setting((), "Scores that are only shown, a column each: no preference weighs them. What "
                                         "no LoRA was trained towards can show hacking.", stated_reward)  # fmt: skip
    scale: str = setting("none", "Preset of scales: none, diffusion-blend or flow-grpo.")
    folders: tuple[str, ...] = setting((), "Folders with reward weights, as <folder>/<reward>/<file>.", stated)
    download: bool = setting(False, "Download reward weights that are nowhere; off: missing weights stop the run.")


@dataclass(frozen=True)
class EvaluationPrompts:
    """What is sampled: every prompt with every seed."""

    texts: tuple[str, ...] = setting((), "Prompts.")
    file: str = setting("", "Text file with one prompt per line, added to texts.", stated)
    seeds: int = setting(4, "Images of each prompt. Intervals shrink with its root, and with that of the prompts.")
    first_seed: int = setting(1, "Seeds count up from it; the same ones for every prompt.")


@dataclass(frozen=True)
class Search:
    """Methods that use the reward while they sample."""

    candidates: int = setting(4, "n of best_of_n and code. Their cost grows with it; 1 is the base model.")
    block: int = setting(5, "code: denoising steps between choices.")
    gradient_scale: float = setting(0.1, "rgg: length of the reward's push, in lengths of the step's noise. 0: base.")


@dataclass(frozen=True)
class Protocol:
    """An evaluation."""

    methods: tuple[str, ...] = setting((), "What is compared, in the order of the tables. Required.")
    preferences: tuple[tuple[float, ...], ...] = setting((), "Weights over the rewards, each summing to 1. Required.")
    dial_preferences: tuple[tuple[float, ...], ...] = setting((), "Those that kla is sampled at, at every alignment.")
    alignments: tuple[float, ...] = setting((0.0, 0.5, 1.0, 1.5, 2.0), "Lambda of kla and rlg. 0: base, 1: as trained.")
    untils: tuple[float, ...] = setting((1.0,), "Every method of LoRAs is sampled at each: after this share of the "
                                                "steps the base model is alone. 1: LoRAs to the end.")  # fmt: skip
    images_per_pass: int = setting(8, "Rounding depends on it, so it belongs to the protocol. Memory grows with it.")
    models: Models = field(default_factory=Models)
    rewards: EvaluationRewards = field(default_factory=EvaluationRewards)
    prompts: EvaluationPrompts = field(default_factory=EvaluationPrompts)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    search: Search = field(default_factory=Search)


def read_protocol(files: Sequence[Path | str], assignments: Sequence[str] = ()) -> Protocol:
    """The protocol of TOML files, or of names such as toy, then of `key=value` texts. Raises BlendError."""
    protocol = read_settings(Protocol, PROTOCOLS, files, assignments)
    for message in _objections(protocol):
        raise refusal(message)
    return protocol


def oracle_files(protocol: Protocol) -> dict[tuple[float, ...], str]:
    """preference -> the LoRA trained for it. Raises BlendError for another form than '0.5, 0.5=PATH'."""
    return _files_by_preference(protocol, protocol.models.oracles, "models.oracles")


def distilled_files(protocol: Protocol) -> dict[tuple[float, ...], str]:
    """preference -> the LoRA distilled from its blend. Raises BlendError for another form than '0.5, 0.5=PATH'."""
    return _files_by_preference(protocol, protocol.models.distilled, "models.distilled")


def _files_by_preference(protocol: Protocol, options: Sequence[str], key: str) -> dict[tuple[float, ...], str]:
    files = {}
    for option in options:
        words, _, path = option.partition("=")
        try:
            preference = tuple(float(word) for word in words.replace(",", " ").split())
        except ValueError:
            preference = ()
        if not path or preference not in protocol.preferences:
            raise refusal(
                f"{key} has {option!r}, expected one of the protocol's preferences and a file, such as "
                f"'{', '.join(map(str, protocol.preferences[0]))}=one.safetensors'. Correct it."
            )
        files[preference] = path
    return files


def _objections(protocol: Protocol):
    """What is wrong with a protocol, the first thing first."""
    models, rewards, prompts = protocol.models, protocol.rewards, protocol.prompts
    needed = {
        "methods": (protocol.methods, '\'["mpa", "merged"]\''),
        "preferences": (protocol.preferences, "'[[0.5, 0.5]]'"),
        "models.base": (models.base, "PATH"),
        "models.loras": (models.loras, '\'["faithful=a.safetensors", "beautiful=b.safetensors"]\''),
        "rewards.names": (rewards.names, '\'["pickscore", "aesthetic"]\''),
        "prompts.file": (prompts.file or prompts.texts, "prompts.txt"),
    }
    for key, (value, example) in needed.items():
        if not value:
            yield f"the protocol says nothing of {key}. Add it to the file, or give --set {key}={example}."
    if len(rewards.names) != len(models.loras):
        yield (
            f"{len(rewards.names)} rewards came for {len(models.loras)} reward LoRAs. Name in rewards.names the one "
            "that each LoRA was trained towards."
        )
    for preference in (*protocol.preferences, *protocol.dial_preferences):
        if len(preference) != len(models.loras) or min(preference) < 0 or abs(math.fsum(preference) - 1) > 1e-6:
            yield (
                f"a preference is {list(preference)}, expected {len(models.loras)} numbers from 0 upwards that sum to "
                "1, one per reward LoRA. Correct preferences or dial_preferences."
            )
    if any(not (math.isfinite(alignment) and alignment >= 0) for alignment in protocol.alignments):
        yield f"alignments are {list(protocol.alignments)}, expected numbers from 0 (the base) upwards. Correct them."
    if not protocol.untils or any(not 0 <= until <= 1 for until in protocol.untils):
        yield (
            f"untils are {list(protocol.untils)}, expected shares of the steps from 0 (the base) to 1 (LoRAs to the "
            "end), at least one. Correct them."
        )
    search = protocol.search
    counts = {"prompts.seeds": prompts.seeds, "images_per_pass": protocol.images_per_pass}
    counts |= {"search.candidates": search.candidates, "search.block": search.block}
    for key, count in counts.items():
        if count < 1:
            yield f"{key} is {count}, expected 1 or more. Raise it."
