"""What a network predicts, as an affine map to denoised, the model's estimate of x0."""

from __future__ import annotations

from .errors import BlendError

_TINY = 1e-8  # the signal of pure noise, where schedules with zero terminal signal have 0 and eps says nothing


def x0_map(kind: str, signal: float, noise: float) -> tuple[float, float]:
    """(keep, gain) with x0 = keep * x + gain * prediction, at x = signal * x0 + noise * n.

    kind: epsilon (n), v_prediction (signal * n - noise * x0), sample (x0), or flow (n - x0, where signal + noise = 1).
    Raises BlendError for another one.
    """
    maps = {
        "epsilon": (1 / max(signal, _TINY), -noise / max(signal, _TINY)),
        "v_prediction": (signal, -noise),
        "sample": (0.0, 1.0),
        "flow": (1.0, -noise),
    }
    if kind not in maps:
        raise BlendError(f"the model predicts {kind!r}, expected one of {', '.join(maps)}. Choose another base model.")
    return maps[kind]
