"""`diffusion-blend inspect`: what a LoRA file holds and says of its making."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or a folder with one.")],
    base: Annotated[str, typer.Option(help="Match it with this base model too: folder, hub id, toy.")] = "",
) -> None:
    """Print a LoRA's modules, ranks, scale and header; with --base, how many modules fit that model."""
    from ...blend_core import read_adapter

    adapter = read_adapter(file)
    print(f"{adapter.label} ({adapter.path})")
    print(adapter.summary)
    if base:
        from ...pipelines import load_base, match
        from ..toy import place

        _, (report,) = match(load_base(place(base)), [adapter])
        print(report)
    kl_weight = adapter.kl_weight
    print(f"rewards: {', '.join(adapter.rewards) or 'not stated'}")
    print(f"kl_weight: {'not stated' if kl_weight is None else f'{kl_weight:g}'}")
    for name in sorted(adapter.metadata):
        print(f"  {name} = {adapter.metadata[name]}")
