"""What a network predicts, as an affine map to denoised, the model's estimate of x0; and the states it sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .errors import BlendError

_TINY = 1e-8  # the signal of pure noise, where schedules with zero terminal signal have 0 and eps says nothing


@dataclass(frozen=True)
class State:
    """Noisy latents before a step. x: (rows, ...) = signal * x0 + noise * n."""

    x: Tensor
    signal: float
    noise: float

    def freshness(self, before: State, denoised: Tensor) -> Tensor:
        """How much of this state's noise is new since `before`, (rows,): its root mean square, in units of `noise`.

        denoised: (rows, ...), predicted there. Without fresh noise a step keeps n, give or take what a sampler of
        higher order and guidance correct: x' = signal' D + noise' / noise (x - signal D). An ancestral step from sigma
        to sigma', which also shortens the old noise, has sqrt(2 - 2 sigma' / sigma) in the variance-exploding family.
        """
        kept = (before.x - before.signal * denoised) * (self.noise / before.noise)
        new = self.x - self.signal * denoised - kept
        return new.float().flatten(1).square().mean(1).sqrt() / self.noise


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
