"""Making the images of a request: models opened, blend built, files written as they come."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ...blend_core import (
    ESTIMATORS,
    Blend,
    BlendError,
    Schedule,
    normalised,
    parse_numbers,
    parse_weights,
    read_adapter,
)
from ...blend_core.gaussian import basis_etas
from ...pipelines import EXECUTIONS, METHODS, Method, Sampling, generate, load_base, match
from ...trainers.places import without_folders
from .record import Request, check_same_models, claim, fingerprint, new_record, place, write


def run(request: Request, out: Path, former: dict | None = None) -> None:
    """Make the images that `out` lacks. former: the record of a run to repeat, whose models must be the same.

    Raises BlendError before anything is written for input that cannot be used.
    """
    check(request)
    adapters = [read_adapter(file) for file in request.reward_files().values()]
    blend = blend_of(request, [adapter.kl_weight for adapter in adapters])
    etas = _etas(request, [adapter.eta for adapter in adapters])
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()  # one bar is enough: the images'
    pipe = load_base(place(request.base), request.config, dtype_of(request.dtype))
    base_fingerprint = fingerprint(pipe)
    sampling = Sampling(request.steps, request.eta, request.cfg, request.size, request.execution)
    factors, reports = match(pipe, adapters)
    method = Method.of(request.method, blend, factors, etas, request.base_eta, request.budget, request.until)
    method.check(pipe, sampling)
    facts = {
        "formula": _formula(blend, request) if blend and request.method != "base" else "base",
        "coefficients": dict(zip(("base", *request.rewards), blend.coefficients, strict=True)) if blend else {},
        "etas": dict(zip(("base", *request.rewards), method.etas, strict=True)) if method.etas else {},
        "reports": [without_folders(str(report)) for report in reports],
        "images": _with_choices(request, method),
    }
    record = new_record(request, base_fingerprint, facts, out)
    if former is not None:
        check_same_models(former, record)
    claim(out, record)
    pipe.to(request.device)
    if method.bank is not None:
        method.bank.to(request.device)
    _make(pipe, method, sampling, request, out)


def read_rewards(options: Sequence[str], base: str) -> dict[str, str]:
    """label -> file from options such as NAME=PATH; with the toy base a NAME is enough."""
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


def _make(pipe, method: Method, sampling: Sampling, request: Request, out: Path) -> None:
    """The missing images. Batches are cut the same way however many are missing, so that rounding is the same too."""
    items = request.items()
    batches = [items[i : i + request.batch_size] for i in range(0, len(items), request.batch_size)]
    with tqdm(total=len(items), unit="image") as progress:
        for batch in batches:
            missing = {item["file"] for item in batch if not (out / item["file"]).exists()}
            if missing:
                seeds = [item["seed"] for item in batch]
                images = generate(pipe, method, [item["prompt"] for item in batch], seeds, sampling)
                for item, image in zip(batch, images, strict=True):
                    if item["file"] in missing:
                        write(out / item["file"], png(image))
            progress.update(len(batch))


def check(request: Request) -> None:
    """Raise BlendError for requests that can be refused before anything is loaded."""
    if not request.prompts:
        raise BlendError("no prompt came. Give --prompt TEXT, or --prompts FILE with one prompt per line.")
    if request.method not in METHODS:
        raise BlendError(f"--method is {request.method!r}, expected one of {', '.join(METHODS)}.")
    if request.execution not in EXECUTIONS:
        raise BlendError(f"--execution is {request.execution!r}, expected one of {', '.join(EXECUTIONS)}.")
    if request.method != "base" and not request.rewards:
        raise BlendError("no reward LoRA came. Give --reward NAME=PATH, or --method base for the base model alone.")
    if request.until != 1 and request.method == "base":
        raise BlendError(
            f"--until is {request.until:g} with --method base, which is the base model throughout. Leave it out, or "
            "choose another method."
        )
    if request.size is not None and request.size % 8:
        raise BlendError(f"--size is {request.size}, expected a multiple of 8. Take {request.size // 8 * 8}.")


def blend_of(request: Request, kl_weights: Sequence[float | None]) -> Blend | None:
    """The blend asked for, None without rewards; one-variant methods refuse coefficients below 0 here."""
    names = tuple(request.rewards)
    if not names:
        return None
    preference = normalised(parse_weights(request.weights, len(names)))
    blend = Blend(names, preference, request.alignment, tuple(kl_weights))
    if request.method in ESTIMATORS:
        ESTIMATORS[request.method](blend.coefficients, 1, [0])
    return blend


def _formula(blend: Blend, request: Request) -> str:
    """What the record says was made, for people."""
    return Schedule.even([blend]).cut(request.until).formula(request.steps)


def _etas(request: Request, stated: Sequence[float | None]) -> tuple[float, ...]:
    """eta of each reward for msdda, none for other methods."""
    given = parse_numbers(request.etas, "etas", "reward LoRA", "1, 0.6")
    if request.method != "msdda":
        return given  # refused with the method
    return basis_etas(given, stated, request.base_eta)[1:]


def _with_choices(request: Request, method: Method) -> list[dict]:
    """The images of the run; for one-variant methods with what each step of each uses."""
    items = request.items()
    if request.method not in ("stratified", "sampled"):
        return items
    names = ("base", *request.rewards)
    plan = method.plan(request.steps, [item["seed"] for item in items])
    choices = plan.variants[:, 0].T.tolist()  # (images, steps)
    return [item | {"choices": [names[i] for i in steps]} for item, steps in zip(items, choices, strict=True)]


def png(image: Tensor) -> bytes:
    """A PNG file of an image (3, h, w) in [0, 1]."""
    buffer = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dtype_of(name: str) -> torch.dtype:
    """The dtype that --dtype names."""
    if name not in ("float32", "float16", "bfloat16"):
        raise BlendError(f"--dtype is {name!r}, expected float32, float16 or bfloat16.")
    return getattr(torch, name)
