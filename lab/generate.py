"""`diffusion-blend generate`: images of a blend on a diffusers pipeline, and the record that makes them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ..blend_core.errors import BlendError

RECORD = "generation.json"
FORMAT = 1
TOY = Path(__file__).parent / "toy" / "studio"


@dataclass(frozen=True)
class Request:
    """All that decides the images of a run. rewards: label -> file; prompts in order, `count` images each."""

    base: str
    prompts: list[str]
    rewards: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    alignment: float = 1.0
    method: str = "exact"
    steps: int = 30
    eta: float = 0.0
    cfg: float = 7.5
    seed: int = 0
    count: int = 1
    size: int | None = None
    config: str | None = None
    dtype: str = "float32"

    def items(self) -> list[dict]:
        """One entry per image: its prompt, seed and file."""
        pairs = [(prompt, self.seed + i) for prompt in self.prompts for i in range(self.count)]
        return [{"prompt": p, "seed": seed, "file": f"{i:05d}.png"} for i, (p, seed) in enumerate(pairs)]


def command(
    base: Annotated[str, typer.Option(help="Diffusers folder, hub id, .safetensors checkpoint, or toy.")] = "toy",
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a reward LoRA; repeat. With --base toy a NAME is enough.")
    ] = None,
    weights: Annotated[str, typer.Option(help="One number per reward, such as '0.6, 0.4'; empty: all alike.")] = "",
    alignment: Annotated[float, typer.Option(help="0 the base model, 1 as trained, above 1 beyond.")] = 1.0,
    method: Annotated[str, typer.Option(help="exact, stratified, sampled, soup or base.")] = "exact",
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for more.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 30,
    eta: Annotated[float, typer.Option(help="DDIM's eta: 0 deterministic, 1 ancestral.", min=0, max=1)] = 0.0,
    cfg: Annotated[float, typer.Option(help="Guidance; 1 switches it off. The toy model likes 2.", min=0)] = 7.5,
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Images per prompt, seeds counting up.", min=1)] = 1,
    size: Annotated[int | None, typer.Option(help="Pixels of each side; default: the model's own.", min=8)] = None,
    config: Annotated[str | None, typer.Option(help="For a checkpoint: a diffusers folder of its family.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per pass.", min=1)] = 8,
    execution: Annotated[str, typer.Option(help="sequential, or batched: all rewards in one pass.")] = "sequential",
    repeat: Annotated[Path | None, typer.Option(help="Make the images of this generation.json again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and generation.json.")] = Path("generated"),
) -> None:
    """Make images of a blend, and a JSON of everything needed to repeat them."""
    if repeat is not None:
        request = read_request(repeat)
    else:
        texts = [*(prompt or []), *(_lines(prompts) if prompts else [])]
        request = Request(
            base=base,
            prompts=texts,
            rewards=_rewards(reward or [], base),
            weights=weights,
            alignment=alignment,
            method=method,
            steps=steps,
            eta=eta,
            cfg=cfg,
            seed=seed,
            count=count,
            size=size,
            config=config,
            dtype=dtype,
        )
    if not request.prompts:
        raise BlendError("no prompt came. Give --prompt TEXT, or --prompts FILE with one prompt per line.")
    run(request, out, device, batch_size, execution)


def run(request: Request, out: Path, device: str, batch_size: int, execution: str) -> None:
    """Make the images that `out` lacks. Refuses a folder that holds another run."""
    import torch
    from tqdm import tqdm

    from ..blend_core import Blend, normalised, parse_weights
    from ..pipelines import Method, Sampling, generate, load_base, load_factors

    names = tuple(request.rewards)
    if request.method != "base" and not names:
        raise BlendError("no reward LoRA came. Give --reward NAME=PATH, or --method base for the base model alone.")
    preference = normalised(parse_weights(request.weights, len(names))) if names else (1.0,)
    blend = Blend(names or ("none",), preference, request.alignment)
    pipe = load_base(_place(request.base), request.config, _dtype(request.dtype)).to(_device(device))
    factors, reports = load_factors(pipe, [_place(path) for path in request.rewards.values()])
    method = Method.of(request.method, blend, factors)
    if method.bank is not None:
        method.bank.to(pipe.device)
    facts = {"formula": blend.formula() if names else "base", "coefficients": list(method.coefficients)}
    facts |= {"reports": [str(report) for report in reports], "torch": torch.__version__}
    items = request.items()
    _claim(out, request, facts, items)
    sampling = Sampling(request.steps, request.eta, request.cfg, request.size, execution)
    missing = [item for item in items if not (out / item["file"]).exists()]
    with tqdm(total=len(items), initial=len(items) - len(missing), unit="image") as progress:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            seeds = [item["seed"] for item in batch]
            images = generate(pipe, method, [item["prompt"] for item in batch], seeds, sampling)
            for item, image in zip(batch, images, strict=True):
                _save(image, out / item["file"])
            progress.update(len(batch))


def read_request(path: Path) -> Request:
    """The request of a generation.json. Raises BlendError where it is none, or a LoRA file has changed since."""
    try:
        record = json.loads(path.read_text())
        request = Request(**record["request"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BlendError(
            f"{path} is not a record of a run: {error!r}. Give the {RECORD} that generate wrote."
        ) from error
    for name, file in request.rewards.items():
        if _sha256(_place(file)) != record["sha256"][name]:
            raise BlendError(
                f"{file} ({name}) is not the file that {path} was made with. Put the former one back, or start a new run."
            )
    return request


def _claim(out: Path, request: Request, facts: dict, items: list[dict]) -> None:
    """Write the record, unless the folder holds one; another run's folder is refused."""
    place = out / RECORD
    record = {"format": FORMAT, "request": asdict(request), **facts}
    record["sha256"] = {name: _sha256(_place(file)) for name, file in request.rewards.items()}
    record["images"] = items
    if place.exists():
        there = json.loads(place.read_text())
        if there["request"] != record["request"] or there["sha256"] != record["sha256"]:
            raise BlendError(f"{out} holds the images of another run. Choose another --out, or empty that folder.")
        return
    out.mkdir(parents=True, exist_ok=True)
    _write(place, json.dumps(record, indent=1).encode())


def _save(image, path: Path) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """All or nothing: an interrupted run leaves no half file that a later one would take for finished."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _rewards(options: Sequence[str], base: str) -> dict[str, str]:
    rewards = {}
    for option in options:
        name, given, path = option.partition("=")
        if not given and base == "toy":
            path = f"toy:{name}"
        elif not (name and path):
            raise BlendError(
                f"--reward is {option!r}, expected NAME=PATH, such as beautiful=loras/aesthetic.safetensors."
            )
        if name in rewards:
            raise BlendError(f"two rewards are named {name}. Give one of them another name.")
        rewards[name] = path
    return rewards


def _place(path: str) -> str:
    """A path, with the toy studio's short names spelled out; records keep the short ones, so that they travel."""
    if path == "toy":
        return str(TOY / "base")
    return str(TOY / "loras" / f"{path[4:]}.safetensors") if path.startswith("toy:") else path


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise BlendError(f"{path} is no file. Give a text file with one prompt per line.")
    return [line.strip() for line in path.read_text(encoding="utf8").splitlines() if line.strip()]


def _sha256(path: str) -> str:
    if not Path(path).is_file():
        raise BlendError(f"{path} is no file. Give the path of a LoRA file.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _dtype(name: str):
    import torch

    if name not in ("float32", "float16", "bfloat16"):
        raise BlendError(f"--dtype is {name!r}, expected float32, float16 or bfloat16.")
    return getattr(torch, name)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BlendError("--device is cuda, but torch finds no CUDA device. Use --device cpu.")
    return name
