"""Which model family a set of names looks like, for messages only: nothing is decided by it."""

import re
from collections.abc import Mapping

_BY_NAME = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("Flux", r"^(double_blocks|single_blocks|single_transformer_blocks)_"),
        ("SD3", r"^joint_blocks_"),
        ("SD", r"^(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)_"),
        ("Wan", r"^blocks_\d+_(self_attn|cross_attn|attn1|attn2|ffn)_"),
        ("Qwen-Image", r"^transformer_blocks_\d+_(img|txt)_m"),
        ("MMDiT", r"^transformer_blocks_\d+_(attn_|norm1_context|ff_context)"),
    )
)
_MMDIT_WIDTHS = {1536: "SD3 or SD3.5 Medium", 2432: "SD3.5 Large", 3072: "Flux or Qwen-Image"}
_TEXT_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
_WIDTHS = {**_TEXT_WIDTHS, **_MMDIT_WIDTHS, 5120: "Wan 14B"}


def family_of(widths: Mapping[str, int]) -> str:
    """The family that canonical names with these input widths look like."""
    for family, pattern in _BY_NAME:
        if any(pattern.match(name) for name in widths):
            return _refined(family, widths)
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
