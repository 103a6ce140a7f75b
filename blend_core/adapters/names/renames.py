"""Names of one weight in different code bases, for hosts whose own map lacks the file's. All names are canonical.

Tables (architectures.py) go both ways: a host of the original code is found by diffusers' names, and one of diffusers
by the original's. Where one side fuses what the other keeps apart, several diffusers weights are rows of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from .spelling import canonical
from .target import Target

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Part:
    """One diffusers weight in a native one. name: a template; empty where it has none. widths: rows as multiples of the
    weight's columns; None for an equal share of the rest."""

    name: str
    widths: int | None


@dataclass(frozen=True)
class Rename:
    """native = parts, templates with # for a number and perhaps * for any end. swap: halves of rows change places."""

    native: str
    parts: tuple[Part, ...]
    swap: bool = False

    @cached_property
    def from_native(self) -> re.Pattern[str]:
        """What matches the native name, with its numbers and its end as groups."""
        return _pattern(self.native)

    @cached_property
    def from_first(self) -> re.Pattern[str]:
        """What matches the name of the first part."""
        return _pattern(self.parts[0].name)


def read_table(text: str) -> tuple[Rename, ...]:
    """The renames of a table; see architectures.py for how it is written."""
    renames, native, diffusers = [], "", ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            native, diffusers = (prefix.strip() for prefix in line.strip("[]").split("="))
            continue
        left, _, right = (side.strip() for side in line.partition("="))
        names = right.removeprefix("~").split() or [left]
        parts = tuple(_part(diffusers, name) for name in names)
        renames.append(Rename(_template(native, left), parts, right.startswith("~")))
    return tuple(renames)


def diffusers_names(renames: Sequence[Rename], targets: Mapping[str, Target]) -> dict[str, tuple[Target, ...]]:
    """Further names of the targets of a host that bears the original's names: rows of the weights it fuses."""
    names, aliases = Names(targets), {}
    for rename in renames:
        for name, groups in names.matching(rename.native, rename.from_native):
            for part, target in _cut(rename, targets[name]):
                if part.name:
                    aliases.setdefault(_filled(part.name, groups), (target,))
    return aliases


def native_names(renames: Sequence[Rename], targets: Mapping[str, Target]) -> dict[str, tuple[Target, ...]]:
    """Further names of the targets of a host of diffusers: of several, where the original fuses their rows."""
    names, aliases = Names(targets), {}
    for rename in renames:
        for _, groups in names.matching(rename.parts[0].name, rename.from_first):
            filled = [_filled(part.name, groups) for part in rename.parts if part.name]
            parts = [targets[name] for name in filled if name in targets]
            if len(parts) == len(rename.parts):
                swapped = tuple(replace(part, swap_halves=part.swap_halves != rename.swap) for part in parts)
                aliases.setdefault(_filled(rename.native, groups), swapped)
    return aliases


def skeleton(name: str) -> str:
    """A name with every number in it replaced by #."""
    return _NUMBER.sub("#", name)


class Names:
    """Canonical names by their skeletons, so that each template looks at few."""

    def __init__(self, names: Iterable[str]):
        self._names = tuple(names)
        self._by_skeleton: dict[str, list[str]] = {}
        for name in self._names:
            self._by_skeleton.setdefault(skeleton(name), []).append(name)

    def matching(self, template: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(name, its numbers and its end) of those that a template fits."""
        candidates = self._names if template.endswith("*") else self._by_skeleton.get(skeleton(template), ())
        for name in candidates:
            if match := pattern.fullmatch(name):
                yield name, match.groups()

    def bear(self, marks: str) -> bool:
        """Whether one of them is one of these marks: templates separated by |."""
        templates = (mark for mark in marks.split("|") if mark)
        return any(True for mark in templates for _ in self.matching(mark, _pattern(mark)))


def _cut(rename: Rename, whole: Target) -> list[tuple[Part, Target]]:
    """The parts of a native weight, in order; none where they do not fit it."""
    if len(rename.parts) == 1:
        return [(rename.parts[0], replace(whole, swap_halves=whole.swap_halves != rename.swap))]
    if whole.rows is not None or len(whole.shape) < 2:
        return []
    width = whole.shape[1]
    shared = [part for part in rename.parts if part.widths is None]
    rest = whole.shape[0] - width * sum(part.widths or 0 for part in rename.parts)
    if rest < 0 or rest % max(len(shared), 1):
        return []
    cut, first = [], 0
    for part in rename.parts:
        length = rest // len(shared) if part.widths is None else width * part.widths
        cut.append((part, replace(whole, rows=(first, length))))
        first += length
    return cut


def _part(prefix: str, name: str) -> Part:
    name, marked, times = name.partition("^")
    widths = int(times or 1) if marked else None
    return Part("" if name == "-" else _template(prefix, name), widths)


def _template(prefix: str, name: str) -> str:
    """Dotted names joined, in canonical form; the mark of a number or of any end stays as it is."""
    return canonical(f"{prefix}.{name}".strip("."))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _filled(template: str, groups: Sequence[str]) -> str:
    values = iter(groups)
    return re.sub(r"[#*]", lambda _: next(values), template)


_XLABS = tuple(
    (re.compile(pattern), native)
    for pattern, native in (
        (r"double_blocks_(\d+)_processor_(qkv|proj)_lora1", r"double_blocks_\1_img_attn_\2"),
        (r"double_blocks_(\d+)_processor_(qkv|proj)_lora2", r"double_blocks_\1_txt_attn_\2"),
        (r"single_blocks_(\d+)_processor_qkv_lora", r"single_blocks_\1_linear1_qkv"),
        (r"single_blocks_(\d+)_processor_proj_lora", r"single_blocks_\1_linear2"),
    )
)


def native_name(name: str) -> str:
    """The original's name of what XLabs calls a processor; others as they are."""
    if "_processor_" in name:
        for pattern, native in _XLABS:
            if match := pattern.fullmatch(name):
                return match.expand(native)
    return name


_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_TOP = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


def unet_name(name: str) -> str | None:
    """diffusers name of a UNet weight by its LDM name; SD 1.5, SD 2 and SDXL have two resnets per level."""
    if name in _UNET_TOP:
        return _UNET_TOP[name]
    match = re.fullmatch(r"middle_block_([012])_(.+)", name)
    if match:
        part, rest = int(match[1]), match[2]
        kind = "attentions_0" if part == 1 else f"resnets_{part // 2}"
        return f"mid_block_{kind}_{_RESNET.get(rest, rest)}"
    match = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", name)
    if match:
        return _unet_block(match[1] == "input", int(match[2]), match[3], match[4])
    return None


def _unet_block(down: bool, number: int, part: str, rest: str) -> str:
    # Three entries per level: input blocks count from 1 and end with the downsampler, output blocks hold three resnets.
    level, index = divmod(number - 1 if down else number, 3)
    side = "down" if down else "up"
    if down and rest == "op":
        return f"down_blocks_{level}_downsamplers_0_conv"
    if not down and rest == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    kind = "resnets" if part == "0" else "attentions"
    return f"{side}_blocks_{level}_{kind}_{index}_{_RESNET.get(rest, rest)}"
