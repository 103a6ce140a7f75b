"""Weights by what a prompt asks for: prompt_rules.json says which words raise the reward LoRAs of which labels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import BlendError

AUTO = "auto"
RULES = Path(__file__).with_name("prompt_rules.json")


@dataclass(frozen=True)
class Rule:
    """Where the prompt holds the pattern, the weight of a LoRA with one of the labels in its own is multiplied."""

    name: str
    pattern: str
    labels: tuple[str, ...]
    times: float


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are applied."""
    return tuple(
        Rule(**values | {"labels": tuple(values["labels"])}) for values in json.loads(RULES.read_text(encoding="utf-8"))
    )


def without_auto(weights: str) -> tuple[bool, str]:
    """(whether the text begins with `auto`, the weights behind it): `auto 0.6, 0.4`, `auto: 1, 2` or `auto` alone."""
    match = re.fullmatch(rf"\s*{AUTO}\b[\s:,]*(.*)", weights, re.IGNORECASE | re.DOTALL)
    return (False, weights) if match is None else (True, match[1])


def check_prompt(prompt: str) -> None:
    """Raise BlendError for a prompt that is empty, which nothing can be read from."""
    if not prompt.strip():
        raise BlendError("weights say auto, but prompt is empty. Write the text of positive there, or numbers.")


def routed(prompt: str, labels: Sequence[str], weights: Sequence[float]) -> tuple[list[float], str]:
    """(the weights, those of the LoRAs raised that the prompt asks for; a line that says which rule raised which).

    Raises BlendError for an empty prompt.
    """
    check_prompt(prompt)
    words = [re.findall(r"[^\W\d_]+", label.lower()) for label in labels]
    numbers, reasons = list(weights), []
    for rule in rules():
        raised = [i for i, parts in enumerate(words) if any(label in parts for label in rule.labels)]
        if raised and re.search(rule.pattern, prompt, re.IGNORECASE):
            numbers = [number * rule.times if i in raised else number for i, number in enumerate(numbers)]
            reasons.append(f"{rule.name} in the prompt: {', '.join(labels[i] for i in raised)} x {rule.times:g}")
    return numbers, f"{AUTO}: {'; '.join(reasons) or 'no rule of the prompt raises one of these rewards'}"
