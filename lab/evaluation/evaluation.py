"""A protocol worked out: prompts, passes in order, and the LoRA files, computed once for all parts of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...blend_core import BlendError
from ..options import read_prompts, read_rewards
from ..toy import place
from .methods import EvaluationPoint, points_of
from .protocol import Protocol, distilled_files, oracle_files


@dataclass(frozen=True)
class Pass:
    """Images of a point that are sampled together. first: the number of its first image in the evaluation."""

    number: int
    first: int
    point: EvaluationPoint
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a protocol asks for. passes: points in order, every prompt with every seed.

    loras: name -> file.  oracles, distilled: preference -> file.
    """

    protocol: Protocol
    prompts: tuple[str, ...]
    passes: tuple[Pass, ...]
    loras: Mapping[str, Path]
    oracles: Mapping[tuple[float, ...], Path]
    distilled: Mapping[tuple[float, ...], Path]

    @classmethod
    def of(cls, protocol: Protocol) -> Evaluation:
        """Raises BlendError for an unknown method, a prompt that comes twice and a LoRA file that is missing."""
        prompts = _prompts(protocol)
        passes = tuple(_passes(protocol, prompts))
        oracles, distilled = (
            {preference: Path(place(path)) for preference, path in files.items()}
            for files in (oracle_files(protocol), distilled_files(protocol))
        )
        return cls(protocol, prompts, passes, _lora_files(protocol), oracles, distilled)

    def passes_by_point(self) -> dict[EvaluationPoint, list[Pass]]:
        """The passes of every point."""
        passes: dict[EvaluationPoint, list[Pass]] = {}
        for pass_ in self.passes:
            passes.setdefault(pass_.point, []).append(pass_)
        return passes


def _prompts(protocol: Protocol) -> tuple[str, ...]:
    """The protocol's own prompts, then those of its file."""
    file = protocol.prompts.file
    prompts = (*protocol.prompts.texts, *(read_prompts(Path(file).expanduser()) if file else []))
    twice = next((prompt for prompt in prompts if prompts.count(prompt) > 1), None)
    if twice is not None:
        raise BlendError(f"the prompt {twice!r} came twice. Leave one out: each is sampled with every seed.")
    return prompts


def _passes(protocol: Protocol, prompts: tuple[str, ...]) -> Iterator[Pass]:
    start, size = protocol.prompts.first_seed, protocol.images_per_pass
    pairs = [(prompt, seed) for prompt in prompts for seed in range(start, start + protocol.prompts.seeds)]
    starts = range(0, len(pairs), size)
    for i, point in enumerate(points_of(protocol)):
        for j, first in enumerate(starts):
            texts, seeds = zip(*pairs[first : first + size], strict=True)
            yield Pass(i * len(starts) + j, i * len(pairs) + first, point, texts, seeds)


def _lora_files(protocol: Protocol) -> dict[str, Path]:
    paths = read_rewards(protocol.models.loras, protocol.models.base)
    files = {name: Path(place(path)).expanduser() for name, path in paths.items()}
    for name, file in files.items():
        if not file.is_file():
            raise BlendError(f"{file} ({name}) is no file. Name an existing LoRA file in models.loras.")
    return files
