"""Making the images of a request: models opened, blend built, files written as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ...blend_core import EVALUATIONS, Blend, BlendError, Schedule, read_adapter
from ...blend_core.blend import normalised, parse_numbers, parse_weights
from ...blend_core.estimators import check_evaluation
from ...blend_core.gaussian import basis_etas
from ...pipelines import EXECUTIONS, PIPELINE_EVALUATIONS, BlendEvaluation, Sampling, generate, load_base, match
from ...pipelines.loading import hide_loading_bars
from ...trainers.places import without_folders
from ..files import fingerprint, png, write
from ..options import dtype_of
from ..toy import place
from .record import Request, check_same_models, claim, new_record


def run(request: Request, out: Path, former: dict | None = None) -> None:
    """Make the images that `out` lacks. former: the record of a run to repeat, whose models must be the same.

    Raises BlendError before anything is written for input that cannot be used.
    """
    check(request)
    adapters = [read_adapter(file) for file in request.reward_files().values()]
    blend = blend_of(request, [adapter.kl_weight for adapter in adapters])
    etas = _etas(request, [adapter.eta for adapter in adapters])
    hide_loading_bars()  # one bar is enough: the images'
    pipe = load_base(place(request.base), request.config, dtype_of(request.dtype))
    base_fingerprint = fingerprint(pipe)
    sampling = Sampling(request.steps, request.eta, request.cfg, request.size, request.execution)
    factors, reports = match(pipe, adapters)
    evaluation = BlendEvaluation.of(
        request.evaluation, blend, factors, etas, request.base_eta, request.budget, request.until
    )
    evaluation.check(pipe, sampling)
    facts = {
        "formula": _formula(blend, request) if blend and request.evaluation != "base" else "base",
        "coefficients": dict(zip(("base", *request.rewards), blend.coefficients, strict=True)) if blend else {},
        "etas": dict(zip(("base", *request.rewards), evaluation.etas, strict=True)) if evaluation.etas else {},
        "reports": [without_folders(str(report)) for report in reports],
        "images": _with_choices(request, evaluation),
    }
    record = new_record(request, base_fingerprint, facts, out)
    if former is not None:
        check_same_models(former, record)
    claim(out, record)
    pipe.to(request.device)
    if evaluation.bank is not None:
        evaluation.bank.to(request.device)
    _make(pipe, evaluation, sampling, request, out)


def _make(pipe, evaluation: BlendEvaluation, sampling: Sampling, request: Request, out: Path) -> None:
    """The missing images. Batches are cut the same way however many are missing, so that rounding is the same too."""
    items = request.items()
    batches = [items[i : i + request.batch_size] for i in range(0, len(items), request.batch_size)]
    with tqdm(total=len(items), unit="image") as progress:
        for batch in batches:
            missing = {item["file"] for item in batch if not (out / item["file"]).exists()}
            if missing:
                seeds = [item["seed"] for item in batch]
                images = generate(pipe, evaluation, [item["prompt"] for item in batch], seeds, sampling)
                for item, image in zip(batch, images, strict=True):
                    if item["file"] in missing:
                        write(out / item["file"], png(image))
            progress.update(len(batch))


def check(request: Request) -> None:
    """Raise BlendError for requests that can be refused before anything is loaded."""
    if not request.prompts:
        raise BlendError("no prompt came. Give --prompt TEXT, or --prompts FILE with one prompt per line.")
    check_evaluation("--evaluation", request.evaluation, PIPELINE_EVALUATIONS)
    if request.execution not in EXECUTIONS:
        raise BlendError(f"--execution is {request.execution!r}, expected one of {', '.join(EXECUTIONS)}.")
    if request.evaluation != "base" and not request.rewards:
        raise BlendError("no reward LoRA came. Give --reward NAME=PATH, or --evaluation base for the base model alone.")
    if request.until != 1 and request.evaluation == "base":
        raise BlendError(
            f"--until is {request.until:g} with --evaluation base, which is the base model throughout. Leave it out, "
            "or choose another evaluation."
        )
    if request.size is not None and request.size % 8:
        raise BlendError(f"--size is {request.size}, expected a multiple of 8. Take {request.size // 8 * 8}.")


def blend_of(request: Request, kl_weights: Sequence[float | None]) -> Blend | None:
    """The blend asked for, None without rewards. Raises BlendError for coefficients that its evaluation cannot take."""
    names = tuple(request.rewards)
    if not names:
        return None
    preference = normalised(parse_weights(request.weights, len(names)))
    blend = Blend(names, preference, request.alignment, tuple(kl_weights))
    if request.evaluation in EVALUATIONS:
        EVALUATIONS[request.evaluation](blend.coefficients, 1, [0])
    return blend


def _formula(blend: Blend, request: Request) -> str:
    """What the record says was made, for people."""
    return Schedule.even([blend]).cut(request.until).formula(request.steps)


def _etas(request: Request, stated: Sequence[float | None]) -> tuple[float, ...]:
    """eta of each reward for msdda, none for other evaluations."""
    etas = parse_numbers(request.etas, "etas", "reward LoRA", "1, 0.6")
    if request.evaluation != "msdda":
        return etas  # refused with the evaluation
    return basis_etas(etas, stated, request.base_eta)[1:]


def _with_choices(request: Request, evaluation: BlendEvaluation) -> list[dict]:
    """The images of the run; for evaluations of one variant per step with what each step of each uses."""
    items = request.items()
    if request.evaluation not in ("stratified", "random"):
        return items
    names = ("base", *request.rewards)
    plan = evaluation.plan(request.steps, [item["seed"] for item in items])
    choices = plan.variants[:, 0].T.tolist()  # (images, steps)
    return [item | {"choices": [names[i] for i in steps]} for item, steps in zip(items, choices, strict=True)]
