"""The record of a run, generation.json: the request that decides its images, and what they were made with.

A folder belongs to one record. Images already there are kept, so a stopped run goes on where it was.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ... import __version__
from ...blend_core import BlendError
from ...blend_core.adapters.files import sha256
from ...trainers.places import Stated, reopened, stated
from ..files import write_json
from ..toy import place

RECORD = "generation.json"
FORMAT = 2


@dataclass(frozen=True)
class Request:
    """All that decides the images of a run, to the last bit. rewards: label -> file, in the order of the weights.

    batch_size, execution and device belong here because float rounding depends on them.
    """

    base: str
    prompts: list[str]
    rewards: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    alignment: float = 1.0
    until: float = 1.0
    evaluation: str = "exact"
    budget: float | None = None
    steps: int = 30
    eta: float = 0.0
    etas: str = ""
    base_eta: float = 1.0
    cfg: float = 7.5
    seed: int = 0
    count: int = 1
    size: int | None = None
    config: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 8
    execution: str = "sequential"

    def items(self) -> list[dict]:
        """One entry per image, prompts in order, `count` images of each: its prompt, seed and file."""
        pairs = [(prompt, self.seed + i) for prompt in self.prompts for i in range(self.count)]
        return [{"prompt": p, "seed": seed, "file": f"{i:05d}.png"} for i, (p, seed) in enumerate(pairs)]

    def reward_files(self) -> dict[str, Path]:
        """label -> LoRA file. Raises BlendError where one is missing."""
        files = {name: Path(place(path)).expanduser() for name, path in self.rewards.items()}
        for name, file in files.items():
            if not file.is_file():
                raise BlendError(f"{file} ({name}) is no file. Give --reward {name}=PATH of a LoRA file.")
        return files

    def stated(self, folder: Path) -> Request:
        """As a record in `folder` states it: models by their paths from there, or by their names."""
        return self._with_places(stated, folder)

    def reopened(self, folder: Path) -> Request:
        """As the record in `folder` is opened: models by their absolute paths where they lie there."""
        return self._with_places(reopened, folder)

    def _with_places(self, change: Stated, folder: Path) -> Request:
        def changed(path: str) -> str:
            return change(path, folder) if place(path) == path else path  # the toy studio's names stay

        rewards = {label: changed(path) for label, path in self.rewards.items()}
        config = self.config and changed(self.config)
        return replace(self, base=changed(self.base), rewards=rewards, config=config)


def new_record(request: Request, base_fingerprint: str, facts: Mapping[str, Any], out: Path) -> dict:
    """The record of a run, as it stands in `out`.

    facts: what else a reader wants to know; `images` among them has one entry per image.
    """
    return {
        "format": FORMAT,
        "request": asdict(request.stated(out)),
        "sha256": {name: sha256(file) for name, file in request.reward_files().items()},
        "base_fingerprint": base_fingerprint,
        "versions": _versions(),
        **facts,
    }


def read_record(path: Path) -> dict:
    """The record in a file. Raises BlendError where it is none, or one of another format."""
    try:
        record = json.loads(path.read_text(encoding="utf8"))
        number = record["format"]
        if number == FORMAT:
            Request(**record["request"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BlendError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}). Give the {RECORD} that "
            "diffusion-blend generate wrote."
        ) from error
    if number != FORMAT:
        raise BlendError(f"{path} has format {number}, this version reads {FORMAT}. Use the version that wrote it.")
    return record


def check_same_models(record: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise BlendError where a LoRA file or the base model is not what `record` was made with."""
    for name, digest in record["sha256"].items():
        if now["sha256"][name] != digest:
            file = record["request"]["rewards"][name]
            raise BlendError(
                f"{file} ({name}) has changed since the run. Put the former file back, or start a new run."
            )
    if now["base_fingerprint"] != record["base_fingerprint"]:
        raise BlendError(
            f"the weights of {record['request']['base']} have changed since the run. Put the former model back, or "
            "start a new run."
        )


def claim(out: Path, record: Mapping[str, Any]) -> None:
    """Make `out` the folder of this run. Raises BlendError where it holds another run, or images of unknown origin."""
    file = out / RECORD
    if file.exists():
        former = read_record(file)
        settings = asdict(Request(**former["request"]).reopened(out).stated(out))  # later settings: their defaults
        keys = [key for key, value in record["request"].items() if settings.get(key) != value]
        if keys:
            raise BlendError(
                f"{out} holds the images of another run, which differs in {', '.join(keys)}. Choose another --out, or "
                "empty that folder."
            )
        check_same_models(former, record)
        return
    images = [image["file"] for image in record["images"] if (out / image["file"]).exists()]
    if images:
        raise BlendError(f"{out} holds {images[0]} but no {RECORD}. Choose another --out, or empty that folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, record)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"diffusion-blend": __version__, "python": platform.python_version(), **libraries}
