"""The queue of an evaluation: passes of a few images of one point each, shared out by number over the processes.

A process appends one line per finished pass to a file of its own, and waits until the disk has it. So a kill loses the
pass that was running and nothing else; the next run reads all files, whoever wrote them, and goes on with the passes
that are missing. Passes are cut the same way whatever is missing, because rounding depends on what shares a pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ...blend_core import BlendError
from ..generation.record import write
from ..generation.run import png
from .host import Outcome
from .methods import METHODS, Point, points_of
from .opening import open_host, prompts_of, record_of
from .protocol import Protocol

RECORD, LINES, PICTURES = "evaluation.json", "passes-{}.jsonl", "images"


@dataclass(frozen=True)
class Pass:
    """Images that are sampled together. first: the number of its first image in the evaluation."""

    number: int
    first: int
    point: Point
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def passes_of(protocol: Protocol, prompts: Sequence[str]) -> list[Pass]:
    """All passes of an evaluation: points in order, every prompt with every seed."""
    start, size = protocol.prompts.first_seed, protocol.images_per_pass
    pairs = [(prompt, seed) for prompt in prompts for seed in range(start, start + protocol.prompts.seeds)]
    found: list[Pass] = []
    for i, point in enumerate(points_of(protocol)):
        for j in range(0, len(pairs), size):
            texts, seeds = zip(*pairs[j : j + size], strict=True)
            found.append(Pass(len(found), i * len(pairs) + j, point, texts, seeds))
    return found


def work(protocol: Protocol, out: Path, rank: int, world: int, device: str) -> None:
    """Make the passes that are missing among those of process `rank` of `world`. Raises BlendError, see claim."""
    if device == "cpu":
        torch.set_num_threads(1)  # rounding depends on the threads, and results shall not on the processes
    prompts = prompts_of(protocol)
    everything = passes_of(protocol, prompts)
    host = open_host(protocol, device)
    claim(out, record_of(protocol, host, prompts, out))
    done = finished(out)
    own = [each for each in everything if each.number % world == rank]
    with tqdm(total=len(own), unit="pass", disable=rank > 0) as progress:
        for each in own:
            if each.number not in done:
                outcome = host.run(METHODS[each.point.method], each.point, each.prompts, each.seeds)
                _keep_picture(out, each, everything[each.number - 1].point if each.number else None, outcome)
                _append(out / LINES.format(rank), _line(each, outcome))
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
        write(file, json.dumps(record, indent=1, ensure_ascii=False).encode())
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
    return {each["pass"]: each for each in map(json.loads, lines)}


def _differences(former: dict, now: dict, prefix: str = ""):
    for key in former.keys() | now.keys():
        one, other = former.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield prefix + key


def _line(each: Pass, outcome: Outcome) -> dict:
    return {
        "pass": each.number,
        "scores": {name: values.tolist() for name, values in outcome.scores.items()},
        "kl": None if outcome.kl is None else outcome.kl.tolist(),
        "evaluations": outcome.evaluations,
        "seconds": outcome.seconds / len(each.seeds),
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


def _keep_picture(out: Path, each: Pass, former: Point | None, outcome: Outcome) -> None:
    """The first image of every point, for the report."""
    if each.point != former:
        (out / PICTURES).mkdir(exist_ok=True)
        write(out / PICTURES / f"{each.first:06d}.png", png(outcome.images[0]))
