"""The adapter: what one LoRA file holds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..errors import BlendError
from .changes import Change, Factors
from .report import contents_words, left_out_words

METADATA_PREFIX = "diffusion_blend."
K = TypeVar("K")


@dataclass(frozen=True)
class Adapter:
    """What one LoRA file holds, before a host is known.

    modules: what it changes, by module path as the file writes it without its prefixes.
    skipped: what was left out, with the number of keys or the reason.
    metadata: the safetensors header; empty for a pickle container.
    expert: the one of two networks that it is for (experts.py); empty where nothing says so.
    """

    path: str
    label: str
    modules: Mapping[str, Change]
    spelling: str
    adapter_name: str | None
    scale_source: str
    skipped: Mapping[str, str | int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    expert: str = ""

    def times(self, strength: float, source: str) -> Adapter:
        """The same with every change `strength` times as large. source: who says so, for the report.

        Raises BlendError for a strength that is not finite, and for DoRA, whose magnitudes no factor scales.
        """
        if not math.isfinite(strength):
            raise BlendError(
                f"{self.label}: the strength of {source} is {strength}, expected a finite number. Type one there."
            )
        if strength != 1 and "DoRA" in self.kinds:
            raise BlendError(
                f"{self.label} came with strength {strength:g} ({source}), expected 1: it is a DoRA, whose magnitudes "
                "no factor scales. Set the strength to 1, and say in weights how much of it to blend."
            )
        modules = {module: change.times(strength) for module, change in self.modules.items()}
        scale_source = f"{self.scale_source}, times {strength:g} ({source})"
        return self if strength == 1 else replace(self, modules=modules, scale_source=scale_source)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks in the file, ascending; files of mixed rank are normal."""
        return tuple(sorted({rank for change in self.modules.values() if (rank := change.rank) is not None}))

    @property
    def kinds(self) -> dict[str, int]:
        """How many modules are changed in other ways than by plain LoRA, by the name of the way."""
        return dict(Counter(change.kind for change in self.modules.values() if change.factors is None))

    @property
    def kl_weight(self) -> float | None:
        """The KL weight this basis was trained with, or None where the file does not state it (never guessed)."""
        return self._positive("kl_weight")

    @property
    def eta(self) -> float | None:
        """How ancestral the sampler of its training was (DDIM's eta), or None where the file does not state it."""
        return self._positive("eta")

    def _positive(self, name: str) -> float | None:
        """A number of the header; None where it is not stated. Raises BlendError unless it is above 0."""
        text = self.metadata.get(METADATA_PREFIX + name)
        if text is None or not text.strip():
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            words = name.replace("kl_", "KL ")
            raise BlendError(
                f"{self.label}: the header says {name} {text!r}, expected a positive number. "
                f"Correct the header, or type the {words} by hand."
            )
        return value

    @property
    def summary(self) -> str:
        """What the file holds, for a person to read, before it is matched with a model."""
        first = f"{len(self.modules)} modules, {contents_words(self.ranks, self.kinds)}, {self.spelling}"
        left_out = [f"not used: {left_out_words(what, why)}" for what, why in self.skipped.items()]
        return "\n".join([first, self.scale_source, *left_out, *self.notes])

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the rewards this basis was trained on; empty where the file does not state them."""
        text = self.metadata.get(METADATA_PREFIX + "rewards", "").strip()
        try:
            return _reward_names(json.loads(text))
        except (ValueError, RecursionError):  # a plain "aesthetic, hpsv2" is as good as JSON
            return tuple(name.strip() for name in text.split(",") if name.strip())

    @property
    def reward_factor(self) -> float:
        """What the reward was multiplied by in training: the KL weight refers to the product. 1 where not stated."""
        try:
            (only,) = json.loads(self.metadata.get(METADATA_PREFIX + "rewards", ""))
            factor = float(only["weight"]) * float(only["scale"])
            return factor if math.isfinite(factor) else 1.0
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # several rewards, or a plain name
            return 1.0


def plain(changes: Mapping[K, Change], what: str) -> dict[K, Factors]:
    """The factors of changes by the same names. Raises BlendError unless all are plain. what: who needs them."""
    kinds = sorted({change.kind for change in changes.values() if change.factors is None})
    if kinds:
        raise BlendError(
            f"{what} needs low-rank factors throughout, but {', '.join(kinds)} came. Convert the file to LoRA, or "
            "leave it out here."
        )
    return {name: factors for name, change in changes.items() if (factors := change.factors) is not None}


def _reward_names(value: Any) -> tuple[str, ...]:
    """Names from JSON: a list of names, a list of objects with a name, or one of either."""
    items = value if isinstance(value, list) else [value]
    return tuple(str(item.get("name", "")) if isinstance(item, dict) else str(item) for item in items)
