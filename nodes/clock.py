"""Which step of the schedule a model evaluation belongs to."""

from __future__ import annotations

from torch import Tensor

# Samplers whose second evaluation of a step lies on the next sigma of the grid; from sigma alone it cannot be told
# from the first evaluation of the next step.
CORRECTOR_SAMPLERS = {"sample_heun", "sample_exp_heun_2_x0", "sample_exp_heun_2_x0_sde", "sample_sa_solver_pece"}


class StepClock:
    """Counts steps from the sigmas that a sampler evaluates, in order.

    sigmas: the run's schedule, (steps + 1,), falling.  sampler: the name of the sampler's function.
    A step is an interval of the schedule: evaluations between sigmas[i] and sigmas[i + 1] belong to step i.
    """

    def __init__(self, sigmas: Tensor, sampler: str):
        self._sigmas = sigmas.tolist()
        self._corrects = sampler in CORRECTOR_SAMPLERS
        self._corrected: set[int] = set()

    def step(self, sigma: float) -> int:
        """The step of one evaluation at `sigma`; call it once per evaluation."""
        place, on_grid = self._place(sigma)
        if self._corrects and on_grid and place > 0 and place not in self._corrected:
            self._corrected.add(place)
            return place - 1
        return place

    def _place(self, sigma: float) -> tuple[int, bool]:
        last = max(len(self._sigmas) - 2, 0)
        for i, grid in enumerate(self._sigmas[: last + 1]):
            if abs(sigma - grid) <= 1e-4 * grid:
                return i, True
        above = [i for i, grid in enumerate(self._sigmas) if grid > sigma]
        return min(above[-1] if above else 0, last), False
