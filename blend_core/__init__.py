"""The heart of Diffusion Blend: the mathematics of a blend and the LoRA bank. It imports no host."""

from .adapters import LoadReport, Target, TargetIndex, read_adapter, resolve
from .blend import Blend, blend
from .errors import BlendError
from .estimators import EVALUATIONS
from .network.bank import LoRABank
from .plan import Plan
from .schedules import Schedule

__all__ = [
    "EVALUATIONS",
    "Blend",
    "BlendError",
    "LoRABank",
    "LoadReport",
    "Plan",
    "Schedule",
    "Target",
    "TargetIndex",
    "blend",
    "read_adapter",
    "resolve",
]
