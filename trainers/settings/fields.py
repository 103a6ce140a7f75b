"""Settings as fields of dataclasses: default, help, values allowed; their checks, help texts and flat form.

For dataclasses of settings and of further tables, whose keys are then dotted. Imports the standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..places import Stated


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`. open_low, open_high: without that end itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        return f"{'above ' if self.open_low else ''}{self.low:g} to {'below ' if self.open_high else ''}{self.high:g}"


POSITIVE = Range(0, open_low=True)


def setting(
    default: Any, help: str, place: Stated | None = None, *, choices: Sequence[str] = (), within: Range | None = None
) -> Any:
    """A field with its help. choices: the texts it may be.  within: the numbers it may be.

    place: for paths, how a file that is passed on states them.
    """
    metadata = {"help": help, "place": place, "choices": tuple(choices), "within": within}
    return field(default=default, metadata=metadata)


def fields(table: Any) -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every setting of a dataclass, in order."""
    hints = typing.get_type_hints(table)
    for entry in dataclasses.fields(table):
        if dataclasses.is_dataclass(hints[entry.name]):
            yield from ((f"{entry.name}.{key}", inner) for key, inner in fields(hints[entry.name]))
        else:
            yield entry.name, entry


def settings_help(table: type, presets: Path, what: str, rules: Sequence[Callable] = ()) -> str:
    """Every setting of `table` with its default, its values and what it does, then the rules and the presets by name.

    presets: their folder.  what: their heading.  rules: functions, whose docstrings are printed.
    """
    lines = ["", "Settings (in a TOML file as tables, or as --set key=value), with their defaults:", ""]
    for key, entry in fields(table):
        default = '""' if entry.default == "" else entry.default
        values = expected(entry)
        lines += [f"  {key} = {default}" + (f"   ({values})" if values else ""), f"      {entry.metadata['help']}"]
    if rules:
        lines += ["", "What they must be together:", "", *(f"  {rule.__doc__}" for rule in rules)]
    names = ", ".join(sorted(file.stem for file in presets.glob("*.toml")))
    return "\n".join([*lines, "", f"{what}: {names}.", ""])


def expected(entry: dataclasses.Field) -> str:
    """The values that a setting may have, in words; an empty text where its type is all that counts."""
    choices, within = entry.metadata["choices"], entry.metadata["within"]
    if choices:
        return f"one of {', '.join(choices)}"
    return "" if within is None else str(within)


def check_fields(settings: Any) -> None:
    """Raise BlendError with the first setting that is none of its choices, or outside of its range."""
    values = to_flat(settings)
    for key, entry in fields(type(settings)):
        value, choices, within = values[key], entry.metadata["choices"], entry.metadata["within"]
        if choices and value not in choices:
            raise refusal(f"{key} is {value!r}, expected {expected(entry)}. Correct it.")
        if within is not None and value not in within:
            raise refusal(f"{key} is {value:g}, expected {expected(entry)}. Correct it.")


def to_flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key."""
    flat = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        inner = dataclasses.is_dataclass(value)
        flat |= to_flat(value, f"{prefix}{entry.name}.") if inner else {prefix + entry.name: value}
    return flat


def stated_settings(config: Any, folder: Path) -> Any:
    """The settings as a file in `folder` states them: paths relative to it, or by their names; see places.py."""
    changes = {}
    for entry in dataclasses.fields(config):
        value, place = getattr(config, entry.name), entry.metadata.get("place")
        if dataclasses.is_dataclass(value):
            changes[entry.name] = stated_settings(value, folder)
        elif place is not None:
            several = isinstance(value, tuple)
            changes[entry.name] = tuple(place(one, folder) for one in value) if several else place(value, folder)
    return dataclasses.replace(config, **changes)


def refusal(message: str) -> Exception:
    """A BlendError to raise."""
    from ...blend_core.errors import BlendError  # here, because it brings torch along

    return BlendError(message)
