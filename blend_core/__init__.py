"""The heart of Diffusion Blend: the mathematics of a blend and the LoRA bank. It imports no host."""

from .adapters import (
    Adapter,
    Change,
    Factors,
    LoadReport,
    Target,
    TargetIndex,
    is_adapter_file,
    plain,
    read_adapter,
    resolve,
    soup,
)
from .blend import Blend, blend, normalised, parse_numbers, parse_weights, shares
from .errors import BlendError
from .estimators import (
    EVALUATIONS,
    budget,
    exact,
    image_seed,
    merged,
    sampled,
    stratified,
)
from .network.bank import LoRABank
from .network.execution import agree, evaluate_variants, mixed
from .plan import Job, Plan, choices, describe_choices
from .schedules import CURVES, Schedule, parse_positions

__all__ = [
    "CURVES",
    "EVALUATIONS",
    "Adapter",
    "Blend",
    "BlendError",
    "Change",
    "Factors",
    "Job",
    "LoRABank",
    "LoadReport",
    "Plan",
    "Schedule",
    "Target",
    "TargetIndex",
    "agree",
    "blend",
    "budget",
    "choices",
    "describe_choices",
    "evaluate_variants",
    "exact",
    "image_seed",
    "is_adapter_file",
    "merged",
    "mixed",
    "normalised",
    "parse_numbers",
    "parse_positions",
    "parse_weights",
    "plain",
    "read_adapter",
    "resolve",
    "sampled",
    "shares",
    "soup",
    "stratified",
]
