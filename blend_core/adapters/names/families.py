"""Which model family a set of names looks like, for messages, and whose tables of names a host needs."""

from collections.abc import Mapping

from .architectures import ARCHITECTURES
from .renames import Names

_MMDIT_WIDTHS = {1536: "SD3 or SD3.5 Medium", 2432: "SD3.5 Large", 3072: "Flux or Qwen-Image"}
_TEXT_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
_WIDTHS = {**_TEXT_WIDTHS, **_MMDIT_WIDTHS, 5120: "Wan 14B"}


def family_of(widths: Mapping[str, int]) -> str:
    """The family that canonical names with these input widths look like."""
    names = Names(widths)
    for architecture in ARCHITECTURES:
        if names.bear(architecture.native) or names.bear(architecture.diffusers):
            return _refined(architecture.name, widths)
    return "unknown family"


def likely_reading(file: tuple[int, ...], target: tuple[int, ...]) -> str:
    """What a clash of two shapes usually means, or an empty text."""
    for came, expected in zip(file[:2], target[:2], strict=False):
        if came != expected and came in _WIDTHS and expected in _WIDTHS:
            return f"{came} against {expected} is {_WIDTHS[came]} on {_WIDTHS[expected]}"
    if file[:2] == target[:2][::-1]:
        return "the two sides are swapped: up and down may be exchanged in the file"
    return ""


def _refined(family: str, widths: Mapping[str, int]) -> str:
    if family == "SD":
        text = {width for name, width in widths.items() if name.endswith(("attn2_to_k", "attn2_to_v"))}
        return next((_TEXT_WIDTHS[width] for width in sorted(text) if width in _TEXT_WIDTHS), "SD 1.5 or SDXL")
    if family == "MMDiT":
        return next((_MMDIT_WIDTHS[width] for width in widths.values() if width in _MMDIT_WIDTHS), "SD3 or Flux")
    return family
