"""The blend engine on diffusers."""

from .fusion import fused
from .generation import PIPELINE_EVALUATIONS, BlendEvaluation, Sampling, generate
from .host import EXECUTIONS, blended, network_of, target_index
from .loading import load_base, load_factors, match, takes_eta

__all__ = [
    "EXECUTIONS",
    "PIPELINE_EVALUATIONS",
    "BlendEvaluation",
    "Sampling",
    "blended",
    "fused",
    "generate",
    "load_base",
    "load_factors",
    "match",
    "network_of",
    "takes_eta",
    "target_index",
]
