"""dpok and grpo: a policy gradient of advantages, and the KL of every step in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Chunk
from . import losses
from .objective import Pass, Stats
from .online import Online, ScoredSample, numbers_of, reward_figures
from .value import ValueBaseline


@dataclass(frozen=True)
class AdvantageSample(ScoredSample):
    """advantages: (steps, n), in units of the reward.  spread: what the loss is divided by, 1 without standardising."""

    advantages: Tensor
    spread: float


@dataclass
class Spread:
    """Running standard deviation of returns, from earlier epochs only: on the batch itself it would bias the KL."""

    decay: float = 0.9
    variance: float | None = None

    def current(self, returns: Tensor) -> float:
        """What to divide by; the first epoch has nothing earlier and takes its returns' deviation."""
        first = returns.var(unbiased=True).item() if len(returns) > 1 else 0.0
        return max(self.variance if self.variance is not None else first, 1e-12) ** 0.5

    def update(self, returns: Tensor) -> None:
        """Take in one epoch's returns, (n,), of all processes."""
        new = returns.var(unbiased=True).item() if len(returns) > 1 else 0.0
        self.variance = new if self.variance is None else self.decay * self.variance + (1 - self.decay) * new


@dataclass
class PolicyGradient(Online):
    """dpok's baseline is the value network, or the mean of the batch; grpo's is the mean of a prompt's other images.

    spread, baseline: learnt from the returns of earlier epochs, and part of the checkpoint.
    """

    spread: Spread = field(init=False, default_factory=Spread)
    baseline: ValueBaseline | None = field(init=False, default=None)

    def __post_init__(self):
        settings = self.config.policy_gradient
        if self.config.algorithm == "dpok" and settings.value_baseline:
            self.baseline = ValueBaseline(self.config.seed, settings.value_learning_rate, settings.value_updates)

    def collect(self, chunk: Chunk) -> ScoredSample:
        """Trajectories with the base's predictions: the KL to go is part of the return."""
        return self.sample(chunk, with_reference=True)

    def compare(self, samples: list[ScoredSample], epoch: int) -> tuple[list[AdvantageSample], Stats]:
        """Advantages of every step, from the returns of all processes."""
        by_prompt, numbers = self.config.algorithm == "grpo", numbers_of(samples)
        rewards = self.rewards_of_all(samples)
        kl = self.gathering.in_order(torch.cat([s.trajectories.kl.T for s in samples]), numbers).T  # (steps, images)
        groups = self.gathering.in_order(torch.tensor([g for s in samples for g in s.chunk.groups]), numbers)
        returns = losses.returns_to_go(rewards, kl, self.config.kl_weight)
        figures = reward_figures(rewards) | {"path_kl": kl.sum(0).mean().item()}
        figures |= {f"kl_step_{k}": value for k, value in enumerate(kl.mean(1).tolist())}
        peers = groups if by_prompt else torch.zeros_like(groups)
        advantages = losses.leave_one_out(returns, peers.to(returns.device))
        if by_prompt:
            figures["groups_without_spread"] = _share_without_spread(rewards, groups)
        if self.baseline is not None:  # read before it is fitted
            features = self.gathering.in_order(torch.cat([self._features(s) for s in samples]), numbers)
            if self.baseline.ready:
                advantages = returns - self.baseline.of(features).T.to(returns)
            figures["value_loss"] = self.baseline.fit(features, returns.T, epoch)
        centred = advantages[0] if by_prompt else rewards
        spread = self.spread.current(centred) if self.config.policy_gradient.standardise else 1.0
        self.spread.update(centred)
        figures["spread"] = spread
        shares = self.gathering.shares(advantages.T, [sample.chunk.numbers for sample in samples])
        return [_with_advantages(s, rows.T, spread) for s, rows in zip(samples, shares, strict=True)], figures

    def passes(self, samples: Sequence[AdvantageSample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and trained step."""
        total = len(self.policy.steps)
        count = self.config.policy_gradient.trained_steps or total
        trained = sorted(torch.randperm(total, generator=draw)[:count].tolist())
        share = 1 / (len(samples) * count)
        kinds = {k: self._rewarded if k < self.config.rewarded else self._charged for k in trained}
        return [partial(kind, sample, k, share) for sample in samples for k, kind in kinds.items()]

    def _rewarded(self, sample: AdvantageSample, k: int, share: float) -> tuple[Tensor, Stats]:
        """A step that learns from the reward."""
        clip, path, step = self.config.policy_gradient.clip_range_mean_dims, sample.trajectories, self.policy.steps[k]
        x, following = path.states[k], path.states[k + 1]
        prediction = self.policy.predictor(sample.encoding)(x, k)
        dimensions, advantages = x[0].numel(), sample.advantages[k]
        likelihood = step.log_prob(following, step.mean(x, prediction))
        ratio_log = losses.log_ratio(likelihood, path.log_probs[k], dimensions)
        loss = losses.policy_gradient(
            ratio_log,
            advantages,
            step.kl(prediction, path.references[k]),
            kl_weight=self.config.kl_weight,
            spread=sample.spread,
            clip=clip,
            dimensions=dimensions,
        )
        clipped = losses.clipped_share(ratio_log, advantages, clip)
        off = (ratio_log.exp() - 1).abs().max().item()
        return loss.mean() * share, {"clip_fraction": clipped.item(), "max_ratio_error": off}

    def _charged(self, sample: AdvantageSample, k: int, share: float) -> tuple[Tensor, Stats]:
        """A step that only pays its KL."""
        x = sample.trajectories.states[k]
        kl = self.policy.steps[k].kl(self.policy.predictor(sample.encoding)(x, k), sample.trajectories.references[k])
        loss = losses.kl_charge(kl, kl_weight=self.config.kl_weight, spread=sample.spread, dimensions=x[0].numel())
        return loss.mean() * share, {}

    def _features(self, sample: ScoredSample) -> Tensor:
        """What the value network reads, (n, steps, width)."""
        states = sample.trajectories.states[:-1]
        rows = [self.policy.features(x, k, sample.encoding) for k, x in enumerate(states)]
        return torch.stack(rows, dim=1).float()

    def state_dict(self) -> dict[str, Any]:
        """The running spread and the value network."""
        return {"variance": self.spread.variance, "baseline": self.baseline.state_dict() if self.baseline else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's."""
        self.spread.variance = state["variance"]
        if self.baseline and state["baseline"]:
            self.baseline.load_state_dict(state["baseline"])


def _with_advantages(sample: ScoredSample, advantages: Tensor, spread: float) -> AdvantageSample:
    return AdvantageSample(**vars(sample), advantages=advantages, spread=spread)


def _share_without_spread(rewards: Tensor, groups: Tensor) -> float:
    spreads = [rewards[groups.to(rewards.device) == group].std(unbiased=False) for group in groups.unique()]
    return torch.stack(spreads).lt(1e-8).float().mean().item()
