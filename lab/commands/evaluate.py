"""`diffusion-blend evaluate`: the command. The work is in evaluation/, which loads only when it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..evaluation.protocol import PROTOCOLS, Protocol, read_protocol
from .options import Assignments, Device, help_option

if TYPE_CHECKING:
    from ..evaluation.evaluation import Evaluation


def command(
    protocol: Annotated[
        list[str] | None, typer.Argument(help="toy, paper, or TOML files; later ones win. Default: toy.")
    ] = None,
    set: Assignments = None,
    processes: Annotated[int, typer.Option(help="Processes: one per core or GPU, as memory allows.", min=1)] = 1,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder for scores, tables, plots and report.html.")] = Path("evaluation"),
    help: Annotated[bool, help_option(Protocol, PROTOCOLS, "Protocols")] = False,
) -> None:
    """Compare methods on the same prompts and noise. A run that was stopped goes on when the command is given again.

    On several machines, with a folder that all see: accelerate launch -m diffusion_blend.lab evaluate ...
    """
    settings = read_protocol(protocol or ["toy"], set or [])
    from ..evaluation.evaluation import Evaluation
    from ..evaluation.report import publish
    from ..options import chosen_device
    from ..tables import print_rows

    device = chosen_device(device)
    evaluation = Evaluation.of(settings)
    _work(evaluation, out, processes, device)
    tables = publish(evaluation, out)
    if tables is None:
        print(f"This process has made its share; the last one of all writes {out / 'report.html'}.")
        return
    for table in tables:
        print_rows(table)
    print(f"Written: {out / 'report.html'}, and scores.parquet, costs.parquet, summary.md, .csv and .json next to it")


def _work(evaluation: Evaluation, out: Path, processes: int, device: str) -> None:
    """This process's share under accelerate launch, else all of it by `processes`."""
    from ..evaluation.queue import work

    if "WORLD_SIZE" in os.environ:
        local = int(os.environ.get("LOCAL_RANK", 0))
        work(evaluation, out, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), _placed(device, local))
    elif processes == 1:
        work(evaluation, out, 0, 1, device)
    else:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            shares = [pool.submit(work, evaluation, out, i, processes, _placed(device, i)) for i in range(processes)]
            for share in shares:
                share.result()


def _placed(device: str, number: int) -> str:
    """The GPU of a process."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % torch.cuda.device_count()}"
