"""draft through the predicted x0 at random steps of stored trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...blend_core.errors import BlendError
from ..data.prompts import Chunk
from ..settings.config import Config
from . import losses
from .objective import Pass, Stateless, Stats
from .online import Online, ScoredSample, reward_figures


def check_chain(config: Config, transition: str) -> None:
    """Raise BlendError where draft.through x0 would mis-state the KL weight.

    It takes the x0 predicted from a state for what the chain makes of it on average. That holds for chains that forget
    their noise, which DDIM at eta 1 is; with less noise the chain's slope is another, by 40% on the tests' flow chain.
    """
    if config.algorithm != "draft" or config.draft.through != "x0":
        return
    if transition == "flow" or config.sampling.eta != 1:
        which = "a flow model" if transition == "flow" else f"sampling.eta {config.sampling.eta:g}"
        raise BlendError(
            f"draft.through is x0 on {which}: there the kl_weight of the file would not be the one trained with. Set "
            "draft.through to last, with draft.steps as many as fit."
        )


class PredictedX0(Stateless, Online):
    """A step's share of the reward, by the x0 that is predicted after it.

    Step k moves the state to x' = mean + sigma z, and what it gains there is r(x0(x')), with the x0 predicted from x':
    it stands for E[reward | x'] (the papers' Jensen approximation; for DDIM at eta 1 exact where predictions are
    posterior means and the reward is linear; check_chain refuses chains with less noise).
    Its slope at x' times the step's mean has the gradient wanted. Climbing r(x0(x_k)) itself, as ReFL does, weighs step
    k as if it decided the whole of x0, many times too much at early steps: its KL weight would mean nothing.
    """

    def collect(self, chunk: Chunk) -> ScoredSample:
        """Trajectories without the base's predictions: only some steps need them."""
        return self.sample(chunk, with_reference=False)

    def compare(self, samples: list[ScoredSample], epoch: int) -> tuple[list[ScoredSample], Stats]:
        """The samples as they are, and the figures of all rewards."""
        return samples, reward_figures(self.rewards_of_all(samples))

    def passes(self, samples: Sequence[ScoredSample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and chosen step."""
        chosen = spread_choice([step.kl_factor for step in self.policy.steps], self.config.draft.steps, draw)
        share = 1 / (len(samples) * len(self.policy.steps))
        count = len(chosen)  # the mean over passes of the figure path_kl is the mean path's
        return [partial(self._pass, s, k, weight, share, count) for s in samples for k, weight in chosen]

    def _pass(self, sample: ScoredSample, k: int, weight: float, share: float, chosen: int) -> tuple[Tensor, Stats]:
        """weight: 1 / probability of the step.  chosen: steps in the update."""
        steps, path = self.policy.steps, sample.trajectories
        x = path.states[k]
        prediction = self.policy.predictor(sample.encoding)(x, k)
        kl = steps[k].kl(prediction, self.policy.reference_predictor(sample.encoding)(x, k))
        figures = {"path_kl": kl.mean().item() * weight * chosen}
        if k < self.config.draft.first_step:
            return (self.config.kl_weight * kl).mean() * weight * share, figures
        slope = self._slope(sample, path.states[k + 1], k + 1)
        gain = (slope * steps[k].mean(x, prediction)).flatten(1).sum(1)  # its gradient is the reward's
        loss = losses.reward_gradient(gain, kl, kl_weight=self.config.kl_weight)
        return loss.mean() * weight * share, figures

    def _slope(self, sample: ScoredSample, state: Tensor, k: int) -> Tensor:
        """The gradient at a state (n, ...) before step k of the reward of the x0 predicted there."""
        state = state.detach().requires_grad_()
        with torch.enable_grad():
            latents = state
            if k < len(self.policy.steps):
                latents = self.policy.steps[k].x0(state, self.policy.predictor(sample.encoding)(state, k))
            rewards = self.score(self.policy.decode(latents), sample.prompts)
            return torch.autograd.grad(rewards.sum(), state)[0]


def spread_choice(
    factors: Sequence[float], count: int, generator: torch.Generator, floor: float = 1.0
) -> list[tuple[int, float]]:
    """`count` different steps with weights 1 / probability, whose weighted sums have the sum over all as their mean.

    Steps with a large KL factor, the last but one above all, are taken nearly always: left to chance they would make
    the gradient a row of spikes. Systematic sampling of probabilities that grow with the factor's square root.
    floor: what every step has at least, where the mean of the roots is 1.
    """
    if count >= len(factors):
        return [(k, 1.0) for k in range(len(factors))]
    roots = torch.tensor(factors, dtype=torch.float64).sqrt()
    probabilities = _inclusion(roots / roots.mean() + floor, count)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    order = torch.randperm(len(factors), generator=generator)
    ends = probabilities[order].cumsum(0)
    ends[-1] = count
    counts = (ends - offset).ceil().clamp(min=0)
    chosen = torch.diff(counts, prepend=counts.new_zeros(1)) > 0
    return [(k, 1 / probabilities[k].item()) for k in sorted(order[chosen].tolist())]


def _inclusion(sizes: Tensor, count: int) -> Tensor:
    """Probabilities proportional to sizes, none above 1, that sum to count."""
    probabilities = sizes / sizes.sum() * count
    while (probabilities > 1).any():
        sure = probabilities >= 1
        rest = count - sure.sum()
        probabilities = torch.where(sure, torch.ones_like(sizes), sizes / sizes[~sure].sum() * rest)
    return probabilities
