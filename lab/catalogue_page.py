"""docs/reward_loras.md, made from the catalogue of reward LoRAs: `python -m diffusion_blend.lab.catalogue_page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from ..blend_core.adapters.catalogue import Entry, catalogue

PAGE = Path(__file__).parents[1] / "docs" / "reward_loras.md"
_INTRODUCTION = """# Reward LoRAs to download

Written by `python -m diffusion_blend.lab.catalogue_page` from `blend_core/adapters/catalogue.json`; a test fails where
the page says anything else. To add a LoRA, add its lines to that file and run the command.

LoRAs of one base can be blended with one another. One command puts a LoRA where ComfyUI looks for it, and its
configuration too where it has one; a download that was cut off goes on from there:

```
diffusion-blend fetch                                   # the names
diffusion-blend fetch spo-sdxl --comfyui ~/ComfyUI      # asks before it downloads
```

Load Reward LoRA recognises these files, by their SHA-256 where it is known and else by their name or their folder's. It
takes the label and the KL weight from here where you type none and the file states none.

What the publisher does not state is left empty. KL weight: the factor of the KL term in training, which papers call
alpha or beta; "none" where training had no KL term. None of these LoRAs was trained by this project, and every one has
a licence of its own.
"""
_COLUMNS = ("name", "label", "reward", "rank", "alpha", "KL weight", "eta", "guidance", "licence", "files")


def page(entries: Iterable[Entry]) -> str:
    """The page: a table for every base, in the order of the entries, with notes below it."""
    order = list(entries)
    bases = list(dict.fromkeys(entry.base for entry in order))
    order.sort(key=lambda entry: bases.index(entry.base))
    sections = [_section(base, list(group)) for base, group in groupby(order, key=lambda entry: entry.base)]
    return "\n".join([_INTRODUCTION, *sections])


def _section(base: str, entries: Sequence[Entry]) -> str:
    """One base's table, without the columns that nothing is known for."""
    columns = zip(_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, entries), strict=True)
    rows = zip(*(column for column in columns if any(column[2:])), strict=True)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    notes = "".join(f"\n- `{entry.name}`: {entry.note}" for entry in entries if entry.note)
    return f"## {base}\n\n{table}\n" + (f"{notes}\n" if notes else "")


def _cells(entry: Entry) -> tuple[str, ...]:
    kl_weight = "none" if entry.kl_weight == 0 else _number(entry.kl_weight)
    numbers = (_number(entry.rank), _number(entry.alpha), kl_weight, _number(entry.eta), _number(entry.guidance))
    return (f"`{entry.name}`", entry.label, entry.reward, *numbers, entry.licence, _files(entry))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _files(entry: Entry) -> str:
    where = entry.repository or entry.url.split("/")[2]
    names = [f"`{name}`" + (f" (SHA-256 `{digest[:12]}...`)" if digest else "") for name, digest in entry.files.items()]
    return f"[{where}]({entry.page})" + (f": {', '.join(names)}" if names else "")


if __name__ == "__main__":
    PAGE.write_text(page(catalogue().values()), encoding="utf-8")
    print(PAGE)
