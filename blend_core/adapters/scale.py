"""The scale of each module: where its alpha is written, and what it comes to.

Sources in order: `.alpha` in the file, the safetensors header, adapter_config.json, lora_config.json, none (scale 1).
The rank is always the tensor's own; the header `ss_network_alpha` of kohya is no source.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BlendError

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
    """What a config says of alpha; patterns are peft's, matched at the end of a module path."""

    source: str
    alpha: float
    rank: int | None = None
    rslora: bool = False
    dora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def alpha_of(self, module: str) -> float:
        return _number(_by_pattern(self.alpha_pattern, module, self.alpha), self.source)

    def rank_of(self, module: str) -> int | None:
        return _by_pattern(self.rank_pattern, module, self.rank)


def alpha_config(folder: Path, metadata: Mapping[str, str]) -> AlphaConfig | None:
    """The first config that states alpha: the file's header, then the two JSON files beside it."""
    header = metadata.get(HEADER_KEY)
    if header:
        config = _from_peft(_component(_json(header, "the safetensors header")), "safetensors header")
        if config is not None:
            return config
    if (folder / "adapter_config.json").is_file():
        config = _from_peft(_json_file(folder / "adapter_config.json"), "adapter_config.json")
        if config is not None:
            return config
    if (folder / "lora_config.json").is_file():
        return _from_lora_params(_json_file(folder / "lora_config.json"))
    return None


def module_scale(module: str, rank: int | None, alpha: Tensor | None, config: AlphaConfig | None) -> Scale:
    """Scale of one module from the first source that exists; `alpha` is the tensor beside it, if any.

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
    if alpha.numel() != 1:
        raise BlendError(
            f"{module}.alpha has shape {tuple(alpha.shape)}, expected one number. "
            "Correct the file, or read it with a typed scale."
        )
    return _number(float(alpha.reshape(())), f"{module}.alpha")


def _number(value: Any, source: str) -> float:
    """A usable alpha. Zero is refused too: kohya reads it as alpha = rank, ComfyUI as no effect."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise BlendError(
            f"{source}: alpha is {value!r}, expected a positive number (tools disagree on what else it means). "
            "Correct it, or read the file with a typed scale."
        )
    return float(value)


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
    _refuse_other_methods(config, source)
    alpha = config.get("alpha" if _method(config) in ("LOHA", "LOKR") else "lora_alpha")
    if alpha is None:
        return None
    rank = config.get("r")
    return AlphaConfig(
        source,
        _number(alpha, source),
        rank if isinstance(rank, int) else None,
        config.get("use_rslora") is True,
        config.get("use_dora") is True,
        _mapping(config, "alpha_pattern", source),
        _mapping(config, "rank_pattern", source),
    )


def _from_lora_params(config: Mapping[str, Any]) -> AlphaConfig | None:
    params = _mapping(config, "lora_params", "lora_config.json")
    alpha, rank = params.get("lora_alpha"), params.get("lora_rank")
    if alpha is None:
        return None
    return AlphaConfig("lora_config.json", _number(alpha, "lora_config.json"), rank if isinstance(rank, int) else None)


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("peft_type") or "LORA").rpartition(".")[2].upper()


def _refuse_other_methods(config: Mapping[str, Any], source: str) -> None:
    init = str(config.get("init_lora_weights") or "").lower()
    what = None
    if _method(config) not in _READ:
        what = f"peft_type {_method(config)}"
    elif init.startswith(_CHANGES_THE_BASE):
        what = f"init_lora_weights {init!r}, which also changed the base model's weights"
    if what:
        raise BlendError(
            f"{source} says {what}, expected one of {', '.join(_READ)} on unchanged weights; loaded as that it would "
            "be another model. Convert it to LoRA with peft, or merge it into a model."
        )


def _component(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers prefixes each name with the pipeline component; none when a single model was saved."""
    for prefix in ("unet.", "transformer."):
        own = {name[len(prefix) :]: value for name, value in config.items() if name.startswith(prefix)}
        if own:
            return own
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
