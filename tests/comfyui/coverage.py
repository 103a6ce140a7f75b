"""The table of docs/models.md: which families' tests passed in which ComfyUI. Standard library only, for run.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

REPORT = "DIFFUSION_BLEND_REPORT"  # the file that conftest.py writes outcomes into, where this is set
ABSENT = "not in it"
_INTRODUCTION = """# Model families

Written by `python tests/comfyui/run.py --write-table`; a test fails where it no longer says what the tests cover.

Every family is a tiny random network of ComfyUI's own class. *Blends*: exact, one reward per step and MSDDA, each in
one batch and one variant at a time, against copies of the network with merged weights (relative error up to 1e-4 of
fp32). *Spellings*: ways of naming the keys of a LoRA file, of which every key has to find its weight.

Where the last column says so, no pass of the network holds two variants, whatever the execution: it costs as much as
`sequential`, and the result is the same.

"""
_END = """
Not among them: networks that make shapes in space (Hunyuan3D 2, Trellis 2, TripoSplat), and networks that read pictures
and make none (RT-DETR, SAM 3, Depth Anything 3). Other classes of ComfyUI share the network of a family above
(`VARIANTS` in tests/comfyui/newer_families.py): SDXL inpainting, PixArt Alpha, Flux dev, Wan's Fun control and others.
0 spellings: the smallest network of the class is too large for a file of each.

Families that are not listed run through the same engine, which knows none by name but those of the last column. A layer
that gets another number of rows than the blend passed, or the tokens of all images in one list, is noticed, and the run
goes on one variant at a time. What is not noticed: layers that get the batch on another axis than the first, where that
axis happens to be a multiple of the rows (Cosmos 1 is such a network, and known). Report those that come out wrong
`batched` and right `sequential`.
"""


def cell(blends: int, spellings: int) -> str:
    """What the table says of a family whose every test passed."""
    return f"{blends} blends, {spellings} spellings"


def rendered(reports: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """The document. reports: per version of ComfyUI, per family its `cell` and its `note`."""
    versions = sorted(reports, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    families = list(dict.fromkeys(name for version in reversed(versions) for name in reports[version]))
    lines = [_row("family", *(f"ComfyUI {version}" for version in versions), "one variant at a time, because")]
    lines.append("|" + " --- |" * (len(versions) + 2))
    for name in families:
        rows = [reports[version].get(name, {"cell": ABSENT, "note": ""}) for version in versions]
        lines.append(_row(name, *(row["cell"] for row in rows), next(filter(None, (r["note"] for r in rows)), "")))
    return _INTRODUCTION + "\n".join(lines) + "\n" + _END


def committed(text: str) -> dict[str, dict[str, str]]:
    """The table of a document: per family what each column says."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    (_, *columns), *rest = [[entry.strip() for entry in row] for row in rows]
    return {family: dict(zip(columns, entries, strict=True)) for family, *entries in rest}


def write(path: Path, reports: Mapping[str, Path]) -> None:
    """The document from the reports that conftest.py wrote, by version."""
    path.write_text(rendered({version: json.loads(report.read_text()) for version, report in reports.items()}))


def _row(*entries: str) -> str:
    return f"| {' | '.join(entries)} |"
