"""The scale of each module: where its alpha is written, and what it comes to.

Sources in order: `.alpha` in the file, the safetensors header, what a checkpoint says of its LoRA, adapter_config.json,
lora_config.json, none (scale 1). The rank is always the tensor's own; the header `ss_network_alpha` of kohya is no
source.

A JSON file speaks for the files next to it that agree with it in rank and targets, and for the only one of a folder
where a trainer gave both their names: a stray adapter_config.json must not rescale what lies in models/loras.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BlendError
from .files import WeightFile, weight_files_in

HEADER_KEY = "lora_adapter_metadata"
_MOST_BYTES = 2**24  # of a JSON text; peft's are some kilobytes
_LONGEST_PATTERN, _MOST_REPEATS = 300, 2  # beyond, a pattern can take longer to match than anybody waits
_READ = ("LORA", "LOHA", "LOKR")  # peft's names of what is read
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Scale:
    """value: what multiplies up @ down. words: the same for people, with its source."""

    value: float
    words: str


@dataclass(frozen=True)
class AlphaConfig:
    """What a config says of alpha; patterns are peft's, matched at the end of a module path.

    targets: the modules it is for, where it lists them.  refusal: why what it describes cannot be read.
    """

    source: str
    alpha: Any
    rank: int | None = None
    rslora: bool = False
    dora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    refusal: str = ""

    def alpha_of(self, module: str) -> float:
        """The alpha of a module. Raises BlendError unless it is a positive number."""
        return _number(_by_pattern(self.alpha_pattern, module, self.alpha), self.source)

    def rank_of(self, module: str) -> int | None:
        """The rank that is stated for a module, if any."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def contradiction(self, ranks: Mapping[str, int | None]) -> str:
        """What speaks against these modules, with their ranks, being the ones it is for; empty where nothing does."""
        for module, rank in ranks.items():
            stated = self.rank_of(module)
            if rank is not None and stated is not None and rank != stated:
                return f"it says rank {stated}, and the file has {rank}"
            if self.targets and not any(f".{module}".endswith(f".{target}") for target in self.targets):
                return f"it is for {', '.join(self.targets[:4])}, and the file has {module!r}"
        return ""

    @property
    def comparable(self) -> bool:
        """Whether it says anything that a file can agree with."""
        return bool(self.rank or self.rank_pattern or self.targets)


def alpha_config(file: WeightFile, ranks: Mapping[str, int | None]) -> tuple[AlphaConfig | None, tuple[str, ...]]:
    """(the first config that states alpha for this file, notes on configs next to it that do not).

    ranks: of the file's modules. Raises BlendError for a config of this file that describes what is not read.
    """
    notes = []
    for source in _SOURCES:
        config = source.read(file)
        if config is None:
            continue
        reason = source.not_for(config, file, ranks)
        if reason:
            notes.append(
                f"{config.source} in its folder is not used: {reason}. If it belongs to this file, type the scale, or "
                "put both into a folder of their own"
            )
            continue
        if config.refusal:
            raise BlendError(config.refusal)
        return config, tuple(notes)
    return None, tuple(notes)


@dataclass(frozen=True)
class _Source:
    """A place where alpha may be stated.

    json_name: of a file next to, which may be another file's.  weights_name: how its trainer calls the weights.
    """

    read: Callable[[WeightFile], AlphaConfig | None]
    json_name: str = ""
    weights_name: str = ""

    def not_for(self, config: AlphaConfig, file: WeightFile, ranks: Mapping[str, int | None]) -> str:
        """Why the config is not this file's; empty where it is."""
        if not self.json_name:
            return ""
        only = len(weight_files_in(file.path.parent)) == 1
        if only and (file.path.stem.startswith(self.weights_name) or not config.comparable):
            return ""
        if config.refusal or not config.comparable:
            return "it lies next to other files, and nothing in it says that it is for this one"
        return config.contradiction(ranks)


def _from_header(file: WeightFile) -> AlphaConfig | None:
    header = file.metadata.get(HEADER_KEY)
    return _from_peft(_component(_json(header, "the safetensors header")), "safetensors header") if header else None


def _from_checkpoint(file: WeightFile) -> AlphaConfig | None:
    """What UniRL's checkpoint says next to its state dict."""
    return _plain_config(file.lora_config, "alpha", "rank", "lora_config in the checkpoint")


def _from_adapter_config(file: WeightFile) -> AlphaConfig | None:
    path = file.path.parent / "adapter_config.json"
    return _from_peft(_json_file(path), "adapter_config.json") if path.is_file() else None


def _from_lora_config(file: WeightFile) -> AlphaConfig | None:
    """What DanceGRPO and MixGRPO write."""
    path = file.path.parent / "lora_config.json"
    if not path.is_file():
        return None
    params = _mapping(_json_file(path), "lora_params", "lora_config.json")
    return _plain_config(params, "lora_alpha", "lora_rank", "lora_config.json")


_SOURCES = (
    _Source(_from_header),
    _Source(_from_checkpoint),
    _Source(_from_adapter_config, "adapter_config.json", "adapter_model"),
    _Source(_from_lora_config, "lora_config.json", "pytorch_lora_weights"),
)


def module_scale(module: str, rank: int | None, alpha: Tensor | None, config: AlphaConfig | None) -> Scale:
    """Scale of one module from the first source that exists; `alpha` is the tensor next to it, if any.

    rank: None for the product of two whole matrices (LoKr), which LyCORIS does not scale, and peft by its config.
    """
    if rank is None:
        rank = config and config.rank_of(module)
        if rank is None:
            return Scale(1.0, "scale 1.0 (whole matrices)")
        alpha = None
    if alpha is not None:
        return _scale(_alpha_value(alpha, module), rank, False, ".alpha in the file")
    if config is not None:
        return _scale(config.alpha_of(module), rank, config.rslora, config.source)
    return Scale(1.0, "scale 1.0 (no alpha found)")


def typed_scale(value: float) -> Scale:
    """The scale a user typed, which overrides every source."""
    if not math.isfinite(value):
        raise BlendError(f"the scale typed is {value}, expected a finite number. Type one, or leave it to the file.")
    return Scale(float(value), f"scale {_text(value)} (typed)")


def summary(scales: Sequence[Scale]) -> str:
    """One line for a file; it says so when modules differ."""
    if not scales:
        return "scale 1.0 (differences)"
    counts = Counter(scale.words for scale in scales)
    if len(counts) == 1:
        return next(iter(counts))
    values = [scale.value for scale in scales]
    parts = "; ".join(f"{words} for {count}" for words, count in counts.most_common(3))
    more = f"; and {len(counts) - 3} more" if len(counts) > 3 else ""
    return f"scale {_text(min(values))} to {_text(max(values))}, mixed per module: {parts}{more}"


def _scale(alpha: float, rank: int, rslora: bool, source: str) -> Scale:
    value = alpha / math.sqrt(rank) if rslora else alpha / rank
    over = f"sqrt(rank {rank})" if rslora else f"rank {rank}"
    return Scale(value, f"scale {_text(value)} (alpha {alpha:g} / {over}, {source})")


def _text(value: float) -> str:
    text = f"{value:g}"
    return text + ".0" if text.lstrip("-").isdigit() else text


def _alpha_value(alpha: Tensor, module: str) -> float:
    if alpha.numel() != 1 or alpha.is_complex():
        raise BlendError(
            f"{module}.alpha has shape {tuple(alpha.shape)} and type {alpha.dtype}, expected one number that is real. "
            "Correct the file, or read it with a typed scale."
        )
    return _number(float(alpha.reshape(())), f"{module}.alpha")


def _number(value: Any, source: str) -> float:
    """A usable alpha. Zero is refused too: kohya reads it as alpha = rank, ComfyUI as no effect."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # an int of hundreds of digits
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise BlendError(
            f"{source}: alpha is {str(value)[:60] if number == math.inf else repr(value)}, expected a positive number "
            "(tools disagree on what else it means). Correct it, or type the scale, which may be negative."
        )
    return number


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's rule: the first pattern that, as a regular expression, ends the module path after a dot or its start."""
    for pattern, value in patterns.items():
        _refuse_slow(pattern)
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise BlendError(
                f"the adapter's config has the pattern {pattern!r}, which is no regular expression ({error}). "
                "Correct alpha_pattern or rank_pattern, or read the file with a typed scale."
            ) from error
    return default


def _refuse_slow(pattern: str) -> None:
    repeats = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        raise BlendError(
            f"the adapter's config has the pattern {pattern[:60]!r} ({len(pattern)} characters, {repeats} repeats), "
            f"expected a module's name with at most {_MOST_REPEATS} repeats and none of a group. Simplify "
            "alpha_pattern or rank_pattern, or read the file with a typed scale."
        )


def _mapping(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    """config[name], an object; empty where it is not there."""
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise BlendError(f"{source}: {name} is a {type(value).__name__}, expected an object. Correct it.")
    return value


def _from_peft(config: Mapping[str, Any], source: str) -> AlphaConfig | None:
    refusal = _other_method(config, source)
    alpha = config.get("alpha" if _method(config) in ("LOHA", "LOKR") else "lora_alpha")
    if alpha is None and not refusal:
        return None
    return AlphaConfig(
        source,
        alpha,
        _rank(config.get("r")),
        config.get("use_rslora") is True,
        config.get("use_dora") is True,
        _mapping(config, "alpha_pattern", source),
        _mapping(config, "rank_pattern", source),
        () if config.get("target_parameters") else _names(config.get("target_modules")),
        refusal,
    )


def _plain_config(config: Mapping[str, Any], alpha: str, rank: str, source: str) -> AlphaConfig | None:
    """Of a trainer that writes rank and alpha under these names."""
    if config.get(alpha) is None:
        return None
    return AlphaConfig(source, config[alpha], _rank(config.get(rank)), targets=_names(config.get("target_modules")))


def _rank(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _names(value: Any) -> tuple[str, ...]:
    """A list of module names; empty for anything else, such as a pattern."""
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("peft_type") or "LORA").rpartition(".")[2].upper()


def _other_method(config: Mapping[str, Any], source: str) -> str:
    """Why what the config describes cannot be read; empty where it can."""
    init = str(config.get("init_lora_weights") or "").lower()
    what = None
    if _method(config) not in _READ:
        what = f"peft_type {_method(config)}"
    elif init.startswith(_CHANGES_THE_BASE):
        what = f"init_lora_weights {init!r}, which also changed the base model's weights"
    if what is None:
        return ""
    return (
        f"{source} says {what}, expected one of {', '.join(_READ)} on unchanged weights; loaded as that it would "
        "be another model. Convert it to LoRA with peft, or merge it into a model."
    )


def _component(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers prefixes each name with the pipeline component; none when a single model was saved."""
    for prefix in ("unet.", "transformer."):
        settings = {name[len(prefix) :]: value for name, value in config.items() if name.startswith(prefix)}
        if settings:
            return settings
    return {name: value for name, value in config.items() if not name.startswith("text_encoder")}


def _json_file(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BlendError(f"{path} has {path.stat().st_size} bytes, expected some kilobytes. Move it away.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BlendError(f"{path} cannot be read ({error}). Correct it, or move it away.") from error
    return _json(text, str(path))


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BlendError(f"{source} is not valid JSON ({error}). Correct it, or move it away.") from error
    if not isinstance(value, dict):
        raise BlendError(f"{source} holds a JSON {type(value).__name__}, expected an object. Correct it.")
    return value
