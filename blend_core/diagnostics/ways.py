"""Merged or exact: what a run says about which to take, in words that every host shares."""

from __future__ import annotations

from collections.abc import Sequence

from .measures import Disagreement

SAME = 0.05  # of the blend's way from the base: below it merged and exact give the same image to the eye
SIDEWAYS = 0.5  # a cosine between its two signs is nearer to a right angle than to the blend's way


def way_to_take(steps: Sequence[Disagreement]) -> str:
    """Whether merged evaluation would do, "" where that was not measured. Steps of the base alone do not count."""
    measured = [step for step in steps if step.merged is not None and any(step.coefficients[1:])]
    if not measured:
        return ""
    most = max(measured, key=lambda step: step.merged or 0.0)
    if (most.merged or 0.0) <= SAME:
        return (
            f"Merged or exact: they differ by at most {most.merged:.1%} of the blend's way from the base. Both are "
            "equal here: take merged, it costs one evaluation per step."
        )
    return (
        f"Merged or exact: they differ by up to {most.merged:.0%} of the blend's way from the base (at step "
        f"{most.step + 1}, where {_direction(most.merged_cosine or 0.0)}), so their images are not the same. Which one "
        "scores higher does not follow from that: let a reward score some images of both (diffusion-blend diagnose "
        "--score, or rewards connected to Blend Diagnostics)."
    )


def _direction(cosine: float) -> str:
    """What a cosine of merged - exact and exact - base says."""
    if abs(cosine) < SIDEWAYS:
        return f"merged goes sideways, cosine {cosine:+.2f}"
    return f"merged goes {'further' if cosine > 0 else 'less far'} from the base, cosine {cosine:+.2f}"
