"""Settings from TOML files and key=value texts, for any dataclass of them (fields.py). The standard library alone."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .fields import fields, refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
            raise refusal(f"--set came with {text!r}, expected key=value, such as sampling.steps=20.")
        flat[key.strip()] = (_literal(value.strip()), "--set")
    flat |= {key.replace("__", "."): (value, "the call") for key, value in changes.items()}
    return _build(table, flat)


def _build(table: type, flat: Mapping[str, tuple[Any, str]]) -> Any:
    known = dict(fields(table))
    for key, (_, source) in flat.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            meant = f" Did you mean {', '.join(near)}?" if near else ""
            raise refusal(f"{source} has the setting {key!r}, which is unknown.{meant} `--help` lists them all.")
    return _filled(table, flat, "")


def _filled(table: type, flat: Mapping[str, tuple[Any, str]], prefix: str) -> Any:
    hints, values = typing.get_type_hints(table), {}
    for entry in dataclasses.fields(table):
        key, kind = prefix + entry.name, hints[entry.name]
        if dataclasses.is_dataclass(kind):
            values[entry.name] = _filled(kind, flat, f"{key}.")
        elif key in flat:
            values[entry.name] = _typed(*flat[key], key, kind)
    return table(**values)


def _typed(value: Any, source: str, key: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, source, key, typing.get_args(kind)[0]) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else "a list"
    raise refusal(f"{source}: {key} is {value!r}, expected {expected}. Correct it; `--help` explains each.")


def _read_toml(file: Path | str, presets: Path) -> dict[str, Any]:
    path = Path(file).expanduser()
    if not path.suffix and (presets / f"{file}.toml").is_file():
        path = presets / f"{file}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in presets.glob("*.toml")))
        raise refusal(f"{file} is neither a preset ({known}) nor a TOML file. Give one of these.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise refusal(f"{path} is not valid TOML: {error}. Correct it.") from error


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
