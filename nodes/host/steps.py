"""Which step of the schedule a model evaluation belongs to."""

from __future__ import annotations

from torch import Tensor

# Samplers that evaluate later sigmas of the grid within a step (at eta 1 the midpoint of the two ancestral ones is the
# next sigma), and how often a step calls the model; near the end of the schedule there is less to look ahead to. From
# sigma alone such a call cannot be told from the first call of the next step.
CALLS_PER_STEP = {
    "sample_heun": 2,
    "sample_heunpp2": 3,
    "sample_exp_heun_2_x0": 2,
    "sample_exp_heun_2_x0_sde": 2,
    "sample_sa_solver_pece": 2,
    "sample_dpm_2_ancestral": 2,
    "sample_dpmpp_2s_ancestral": 2,
    "sample_dpmpp_2s_ancestral_cfg_pp": 2,
}


class StepClock:
    """Counts steps from the sigmas that a sampler evaluates, in order.

    sigmas: the run's schedule, (steps + 1,), falling.  sampler: the name of the sampler's function.
    A step is an interval of the schedule: evaluations between sigmas[i] and sigmas[i + 1] belong to step i, except
    for samplers that look ahead on the grid, whose calls are counted.
    """

    def __init__(self, sigmas: Tensor, sampler: str):
        self._sigmas = sigmas.tolist()
        self._last = max(len(self._sigmas) - 2, 0)
        calls = CALLS_PER_STEP.get(sampler, 0)
        self._counted = [i for i in range(self._last + 1) for _ in range(min(calls, self._last + 1 - i))]
        self._calls = 0

    def step(self, sigma: float) -> int:
        """The step of one evaluation at `sigma`; call it once per evaluation."""
        if not self._counted:
            return self._interval(sigma)
        call = min(self._calls, len(self._counted) - 1)
        self._calls += 1
        return self._counted[call]

    def _interval(self, sigma: float) -> int:
        for i, grid in enumerate(self._sigmas[: self._last + 1]):
            if abs(sigma - grid) <= 1e-4 * grid:
                return i
        above = [i for i, grid in enumerate(self._sigmas) if grid > sigma]
        return min(above[-1] if above else 0, self._last)
