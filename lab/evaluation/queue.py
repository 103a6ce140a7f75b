"""The queue of an evaluation: passes of a few images of one point each, shared out by number over the processes.

A process appends one line per finished pass to a file of its own, and waits until the disk has it. So a kill loses the
pass that was running and nothing else; the next run reads all files, whoever wrote them, and goes on with the passes
that are missing. Passes are cut the same way whatever is missing, because rounding depends on what shares a pass.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

from ...blend_core import BlendError
from ..files import png, write, write_json
from .evaluation import Evaluation, Pass
from .host import Outcome
from .methods import METHODS, EvaluationPoint
from .opening import open_host, record_of

RECORD, LINES, PICTURES = "evaluation.json", "passes-{}.jsonl", "images"


def work(evaluation: Evaluation, out: Path, rank: int, world: int, device: str) -> None:
    """Make the passes that are missing among those of process `rank` of `world`. Raises BlendError, see claim."""
    if device == "cpu":
        torch.set_num_threads(1)  # rounding depends on the threads, and results shall not on the processes
    host = open_host(evaluation, device)
    claim(out, record_of(evaluation, host, out))
    done, passes = finished(out), evaluation.passes
    share = [pass_ for pass_ in passes if pass_.number % world == rank]
    with tqdm(total=len(share), unit="pass", disable=rank > 0) as progress:
        for pass_ in share:
            if pass_.number not in done:
                outcome = host.run(METHODS[pass_.point.method], pass_.point, pass_.prompts, pass_.seeds)
                _keep_picture(out, pass_, passes[pass_.number - 1].point if pass_.number else None, outcome)
                _append(out / LINES.format(rank), _line(pass_, outcome))
            progress.update()


def claim(out: Path, record: dict) -> None:
    """Make `out` the folder of this evaluation. Raises BlendError where it holds another one."""
    file = out / RECORD
    now = json.loads(json.dumps(record))
    strangers = sorted(out.glob(LINES.format("*")))  # before the record: another process may be ahead of this one
    if not file.exists():
        if strangers:
            raise BlendError(f"{out} holds {strangers[0].name} but no {RECORD}. Choose another --out, or empty it.")
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        return
    try:
        former = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise BlendError(f"{file} is not the record of an evaluation ({error}). Choose another --out.") from error
    differing = sorted(_differences(former, now))
    if differing:
        raise BlendError(
            f"{out} holds another evaluation, which differs in {', '.join(differing)}. Choose another --out, or empty "
            "that folder."
        )


def finished(out: Path) -> dict[int, dict]:
    """The passes that are done, by number. A line that a kill cut off does not count."""
    lines = [
        line
        for file in sorted(out.glob(LINES.format("*")))
        for line in file.read_text(encoding="utf8", errors="replace").splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return {line["pass"]: line for line in map(json.loads, lines)}


def _differences(former: dict, now: dict, prefix: str = ""):
    for key in former.keys() | now.keys():
        one, other = former.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield prefix + key


def _line(pass_: Pass, outcome: Outcome) -> dict:
    return {
        "pass": pass_.number,
        "scores": {name: values.tolist() for name, values in outcome.scores.items()},
        "kl": None if outcome.kl is None else outcome.kl.tolist(),
        "evaluations": outcome.evaluations,
        "seconds": outcome.seconds / len(pass_.seeds),
        "peak_bytes": outcome.peak_bytes,
    }


def _append(file: Path, line: dict) -> None:
    """Add a line and wait for the disk; first cut off what a kill left half written."""
    with file.open("ab+") as stream:
        stream.seek(0)
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)
        stream.write(json.dumps(line).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _keep_picture(out: Path, pass_: Pass, former: EvaluationPoint | None, outcome: Outcome) -> None:
    """The first image of every point, for the report."""
    if pass_.point != former:
        (out / PICTURES).mkdir(exist_ok=True)
        write(out / PICTURES / f"{pass_.first:06d}.png", png(outcome.images[0]))
