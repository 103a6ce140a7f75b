"""How near the cheap evaluations come to the exact one on an analytic mixture: `python benchmarks/mixtures.py`.

16 dimensions, four components, bases tilted by linear rewards (tests/core/worlds.py), variance exploding, 48 runs from
the same noise. Prints, as Markdown, how many times nearer to the exact blend than iid choice: root mean square, and
median.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from core.worlds import mixture, normal, sample, schedule, start
from diffusion_blend.blend_core.estimators import Estimator, budget, exact, image_seed, random, stratified
from diffusion_blend.blend_core.parameterization import State
from diffusion_blend.blend_core.plan import Call

ESTIMATORS = {
    "stratified": stratified,
    "budget 1": partial(budget, evaluations=1.0),
    "budget 1.1": partial(budget, evaluations=1.1),
}
BLENDS = {
    "two bases": (0.0, 0.5, 0.5, 0.0),
    "three bases": (0.0, 0.3, 0.3, 0.4),
    "base and three": (0.4, 0.3, 0.2, 0.1),
}
IMAGES = 48


def distances(coefficients: tuple[float, ...], steps: int, eta: float) -> dict[str, torch.Tensor]:
    """Each estimator's distance of x0 from the exact blend's, (images,)."""
    world = mixture()
    bases = [world, *(world.tilted_linear(0.6 * tilt, 1.0) for tilt in normal(3, world.size, seed=50))]
    x, sigmas, seeds = start(IMAGES, world.size, seed=51), schedule(steps), [image_seed(7, i) for i in range(IMAGES)]

    def run(estimator: Estimator) -> torch.Tensor:
        plan = estimator(coefficients, steps, seeds)

        def denoiser(x, sigma, step):
            every = torch.stack([basis.denoised(x, sigma) for basis in bases])
            call = Call(state=State(x, 1.0, sigma))
            return plan(lambda variants: every[variants, torch.arange(IMAGES)], step, call=call)

        return sample(denoiser, x, sigmas, eta=eta, seed=3)

    expected = run(exact)
    estimators = {"random": random, **ESTIMATORS}
    return {name: (run(estimator) - expected).norm(dim=1) for name, estimator in estimators.items()}


def _rms(distances: torch.Tensor) -> torch.Tensor:
    return distances.square().mean().sqrt()


def main() -> None:
    """The table."""
    print(f"| blend | eta | steps | {' | '.join(ESTIMATORS)} |\n| --- | --- | --- {'| --- ' * len(ESTIMATORS)}|")
    for blend, coefficients in BLENDS.items():
        for eta in (0.0, 1.0):
            for steps in (10, 20, 30, 50):
                away = distances(coefficients, steps, eta)
                iid = away.pop("random")
                cells = [
                    f"{_rms(iid) / _rms(distance):.1f} ({iid.median() / distance.median():.1f})"
                    for distance in away.values()
                ]
                print(f"| {blend} | {eta:g} | {steps} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
