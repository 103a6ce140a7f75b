"""The algorithms: what each collects from the policy, and the passes whose gradients make one update.

All climb J = E[reward - kl_weight * sum of KL] (losses.py) of a Policy (model/policy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..data.pairs import PairSet
from ..data.prompts import Chunk
from ..distributed import Gathering
from ..model.policy import Encoding, ImagePolicy, Policy
from ..model.rollout import Trajectories, rollout
from ..seeding import stream
from ..settings.config import Config
from . import losses
from .value import ValueBaseline

Score = Callable[[Tensor, Sequence[str]], Tensor]
Stats = dict[str, float]
Pass = Callable[[], tuple[Tensor, Stats]]
"""One forward: a loss to be differentiated, and figures for the log. Losses of all passes of an update add up."""


@dataclass(frozen=True)
class Sample:
    """A chunk after collection. rewards: (n,).  advantages: (steps, n)."""

    chunk: Chunk
    prompts: list[str]
    conditions: Encoding
    trajectories: Trajectories | None = None
    rewards: Tensor | None = None
    advantages: Tensor | None = None


@dataclass
class Spread:
    """Running standard deviation of returns, from earlier epochs only: on the batch itself it would bias the KL."""

    decay: float = 0.9
    variance: float | None = None

    def current(self, returns: Tensor) -> float:
        """What to divide by; the first epoch has nothing earlier and takes its own."""
        own = returns.var(unbiased=True).item() if len(returns) > 1 else 0.0
        return max(self.variance if self.variance is not None else own, 1e-12) ** 0.5

    def update(self, returns: Tensor) -> None:
        """Take in one epoch's returns, (n,), of all processes."""
        own = returns.var(unbiased=True).item() if len(returns) > 1 else 0.0
        self.variance = own if self.variance is None else self.decay * self.variance + (1 - self.decay) * own


@dataclass
class Online:
    """What the online objectives share. score: the reward.  prompts: the whole set."""

    config: Config
    policy: Policy
    score: Score
    prompts: Sequence[str]
    gathering: Gathering = field(default_factory=Gathering)

    def __post_init__(self):
        """For subclasses: what an algorithm keeps over epochs."""

    def sample(self, chunk: Chunk, *, with_reference: bool) -> Sample:
        """Roll the chunk out and score it, without gradient."""
        prompts = [self.prompts[item] for item in chunk.items]
        conditions = self.policy.encode(prompts)
        reference = self.policy.reference_predictor(conditions) if with_reference else None
        predict = self.policy.predictor(conditions)
        with torch.no_grad():
            trajectories = rollout(self.policy.steps, self.noise(chunk), predict, reference)
            rewards = self.score(self.policy.decode(trajectories.latents), prompts)
        return Sample(chunk, prompts, conditions, trajectories, rewards)

    def noise(self, chunk: Chunk) -> Callable[[], Tensor]:
        """The chunk's noise: each image's own."""
        return self.policy.noise([stream(self.config.seed, "noise", number) for number in chunk.numbers])

    def finish(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """What needs the samples of all processes, and the epoch's figures."""
        rewards = self.gathering.of(torch.cat([sample.rewards for sample in samples]), samples)
        return samples, reward_figures(rewards)

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take up a checkpoint's."""


class PolicyGradient(Online):
    """dpok and grpo. dpok's baseline is the value network (or the whole batch), grpo's the other images of a prompt."""

    def __post_init__(self):
        self.spread = Spread()
        settings = self.config.policy_gradient
        self.baseline = None
        if self.config.algorithm == "dpok" and settings.value_baseline:
            self.baseline = ValueBaseline(self.config.seed, settings.value_learning_rate, settings.value_updates)

    def collect(self, chunk: Chunk) -> Sample:
        """Trajectories with the base's predictions beside them: the KL to go is part of the return."""
        return self.sample(chunk, with_reference=True)

    def finish(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """Advantages of every step, from the returns of all processes."""
        kl_weight = self.config.kl_weight
        rewards = self.gathering.of(torch.cat([s.rewards for s in samples]), samples)
        kl = self.gathering.of(torch.cat([s.trajectories.kl.T for s in samples]), samples).T  # (steps, n)
        groups = self.gathering.of(torch.tensor([g for s in samples for g in s.chunk.groups]), samples)
        returns = losses.returns_to_go(rewards, kl, kl_weight)
        figures = reward_figures(rewards) | {"path_kl": kl.sum(0).mean().item()}
        figures |= {f"kl_step_{k}": value for k, value in enumerate(kl.mean(1).tolist())}
        if self.config.algorithm == "grpo":
            advantages = losses.leave_one_out(returns, groups.to(returns.device))
            figures["groups_without_spread"] = _share_without_spread(rewards, groups)
        else:
            advantages = losses.leave_one_out(returns, torch.zeros_like(groups).to(returns.device))
        if self.baseline is not None:  # read before it is fitted
            features = self.gathering.of(torch.cat([self._features(s) for s in samples]), samples)  # (n, steps, width)
            if self.baseline.ready:
                advantages = returns - self.baseline.of(features).T.to(returns)
            figures["value_loss"] = self.baseline.fit(features, returns.T, epoch)
        centred = advantages[0] if self.config.algorithm == "grpo" else rewards
        self.divisor = self.spread.current(centred) if self.config.policy_gradient.standardise else 1.0
        self.spread.update(centred)
        figures["spread"] = self.divisor
        own = self.gathering.own(advantages.T, samples)  # one (n, steps) per sample
        return [replace(s, advantages=a.T) for s, a in zip(samples, own, strict=True)], figures

    def passes(self, samples: list[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and trained step."""
        total = len(self.policy.steps)
        count = self.config.policy_gradient.trained_steps or total
        trained = sorted(torch.randperm(total, generator=draw)[:count].tolist())
        share = 1 / (len(samples) * count)
        return [lambda s=s, k=k: self._pass(s, k, share) for s in samples for k in trained]

    def _pass(self, sample: Sample, k: int, share: float) -> tuple[Tensor, Stats]:
        settings, path, step = self.config.policy_gradient, sample.trajectories, self.policy.steps[k]
        x, following = path.states[k], path.states[k + 1]
        prediction = self.policy.predictor(sample.conditions)(x, k)
        dimensions = x[0].numel()
        kl = step.kl(prediction, path.references[k])
        if k >= self.config.rewarded:
            return (self.config.kl_weight / self.divisor * kl / dimensions).mean() * share, {}
        new = step.log_prob(following, step.mean(x, prediction))
        ratio_log = losses.log_ratio(new, path.log_probs[k], dimensions)
        loss = losses.policy_gradient(
            ratio_log,
            sample.advantages[k],
            kl,
            kl_weight=self.config.kl_weight,
            spread=self.divisor,
            clip=settings.clip_range_mean_dims,
            dimensions=dimensions,
        )
        clipped = losses.clipped_share(ratio_log, sample.advantages[k], settings.clip_range_mean_dims)
        ratio = (ratio_log.exp() - 1).abs().max().item()
        return loss.mean() * share, {"clip_fraction": clipped.item(), "max_ratio_error": ratio}

    def _features(self, sample: Sample) -> Tensor:
        """What the value network reads, (n, steps, width)."""
        states = sample.trajectories.states[:-1]
        each = [self.policy.features(x, k, sample.conditions) for k, x in enumerate(states)]
        return torch.stack(each, dim=1).float()

    def state_dict(self) -> dict:
        """The running spread and the value network."""
        return {"variance": self.spread.variance, "baseline": self.baseline.state_dict() if self.baseline else None}

    def load_state_dict(self, state: dict) -> None:
        """Take up a checkpoint's."""
        self.spread.variance = state["variance"]
        if self.baseline and state["baseline"]:
            self.baseline.load_state_dict(state["baseline"])


class LastSteps(Online):
    """draft through the last K steps (DRaFT-K, arXiv 2309.17400), their KL with it; K = steps is the whole gradient.

    Earlier steps get no reward gradient, but some are charged their KL, so that shared weights do not drift there.
    """

    def collect(self, chunk: Chunk) -> Sample:
        """Prompts alone: the chain is rolled out in the pass, with gradient."""
        prompts = [self.prompts[item] for item in chunk.items]
        return Sample(chunk, prompts, self.policy.encode(prompts))

    def finish(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """Nothing is known yet."""
        return samples, {}

    def passes(self, samples: list[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk."""
        early = len(self.policy.steps) - self.config.draft.steps
        charged = torch.randperm(early, generator=draw)[: self.config.draft.kl_steps].tolist()
        return [lambda s=s: self._pass(s, early, charged, 1 / len(samples)) for s in samples]

    def _pass(self, sample: Sample, early: int, charged: list[int], share: float) -> tuple[Tensor, Stats]:
        steps, noise = self.policy.steps, self.noise(sample.chunk)
        predict = self.policy.predictor(sample.conditions)
        reference = self.policy.reference_predictor(sample.conditions)
        x = noise()
        early_kl = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for k in range(early):
            with torch.set_grad_enabled(k in charged):
                prediction = predict(x, k)
            if k in charged:
                early_kl = early_kl + steps[k].kl(prediction, reference(x, k)) * (early / len(charged))
            x = steps[k].mean(x, prediction.detach()) + steps[k].sigma * noise()
        late_kl = torch.zeros_like(early_kl)
        for k in range(early, len(steps)):
            prediction = self.policy.recomputing(predict)(x, k)
            late_kl = late_kl + steps[k].kl(prediction, reference(x, k))
            x = steps[k].mean(x, prediction) + steps[k].sigma * noise()
        rewards = self.score(self.policy.decode(x), sample.prompts)
        loss = losses.reward_gradient(rewards, late_kl + early_kl, kl_weight=self.config.kl_weight)
        figures = {"reward": rewards.mean().item(), "path_kl": (late_kl + early_kl).mean().item()}
        return loss.mean() * share, figures


class PredictedX0(Online):
    """draft through the predicted x0 at random steps of stored trajectories.

    Step k moves the state to x' = mean + sigma z, and what it gains there is r(x0(x')), with the x0 predicted from x':
    it stands for E[reward | x'] (the papers' Jensen approximation; for DDIM at eta 1 exact where predictions are
    posterior means and the reward is linear; chains with less noise are refused, checks.py).
    Its slope at x' times the step's mean has the gradient wanted. Climbing r(x0(x_k)) itself, as ReFL does, weighs step
    k as if it decided the whole of x0, many times too much at early steps: its KL weight would mean nothing.
    """

    def collect(self, chunk: Chunk) -> Sample:
        """Trajectories without the base's predictions: only some steps need them."""
        return self.sample(chunk, with_reference=False)

    def passes(self, samples: list[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and chosen step."""
        chosen = spread_choice([step.kl_factor for step in self.policy.steps], self.config.draft.steps, draw)
        share = 1 / (len(samples) * len(self.policy.steps))
        count = len(chosen)  # the mean over passes of the figure path_kl is the mean path's
        return [lambda s=s, k=k, w=w: self._pass(s, k, w, share, count) for s in samples for k, w in chosen]

    def _pass(self, sample: Sample, k: int, weight: float, share: float, chosen: int) -> tuple[Tensor, Stats]:
        steps, path = self.policy.steps, sample.trajectories
        x = path.states[k]
        prediction = self.policy.predictor(sample.conditions)(x, k)
        kl = steps[k].kl(prediction, self.policy.reference_predictor(sample.conditions)(x, k))
        figures = {"path_kl": kl.mean().item() * weight * chosen}
        if k < self.config.draft.first_step:
            return (self.config.kl_weight * kl).mean() * weight * share, figures
        slope = self._slope(sample, path.states[k + 1], k + 1)
        gain = (slope * steps[k].mean(x, prediction)).flatten(1).sum(1)  # its gradient is the reward's
        loss = losses.reward_gradient(gain, kl, kl_weight=self.config.kl_weight)
        return loss.mean() * weight * share, figures

    def _slope(self, sample: Sample, state: Tensor, k: int) -> Tensor:
        """The gradient at a state (n, ...) before step k of the reward of the x0 predicted there."""
        state = state.detach().requires_grad_()
        with torch.enable_grad():
            latents = state
            if k < len(self.policy.steps):
                latents = self.policy.steps[k].x0(state, self.policy.predictor(sample.conditions)(state, k))
            rewards = self.score(self.policy.decode(latents), sample.prompts)
            return torch.autograd.grad(rewards.sum(), state)[0]


@dataclass
class Preference:
    """dpo: offline pairs (Diffusion-DPO), on the sampler's own chain.

    A noise level is drawn in proportion to its KL factor, both images of a pair get the same noise, and the evidence
    is the difference in squared error to the noise that was added (losses.preference_evidence).
    """

    config: Config
    policy: ImagePolicy
    pairs: PairSet
    gathering: Gathering = field(default_factory=Gathering)

    def collect(self, chunk: Chunk) -> Sample:
        """The prompts; images are encoded in the pass."""
        prompts = [self.pairs.prompt(item) for item in chunk.items]
        return Sample(chunk, prompts, self.policy.encode(prompts))

    def finish(self, samples: list[Sample], epoch: int) -> tuple[list[Sample], Stats]:
        """Nothing to share."""
        return samples, {}

    def passes(self, samples: list[Sample], draw: torch.Generator) -> list[Pass]:
        """One pass per chunk and draw of a noise level, and of one that is charged its KL where there are such."""
        factors = [step.kl_factor for step in self.policy.steps]
        rewarded = self.config.rewarded
        share = 1 / (len(samples) * self.config.dpo.draws)
        passes = []
        for sample in samples:
            for j in range(self.config.dpo.draws):
                passes.append(lambda s=sample, j=j: self._pass(s, factors[:rewarded], j, share))
                if rewarded < len(factors):
                    passes.append(lambda s=sample, j=j: self._charge(s, factors, rewarded, j, share))
        return passes

    def _pass(self, sample: Sample, factors: list[float], draw: int, share: float) -> tuple[Tensor, Stats]:
        k, noise = self._level(sample, factors, "level", draw), self._noise(sample, draw)
        predict = self.policy.predictor(sample.conditions)
        reference = self.policy.reference_predictor(sample.conditions)
        evidence = []
        for clean in self.pairs.latents(self.policy, sample.chunk.items):
            x, target = self.policy.steps[k].diffused(clean, noise)
            evidence.append(losses.preference_evidence(predict(x, k), reference(x, k), target, sum(factors)))
        loss = losses.preference(*evidence, kl_weight=self.config.kl_weight)
        margin = self.config.kl_weight * (evidence[0] - evidence[1]).detach()
        figures = {"preference_loss": loss.mean().item(), "margin": margin.mean().item()}
        return loss.mean() * share, figures | {"right": (margin > 0).float().mean().item()}

    def _charge(
        self, sample: Sample, factors: list[float], first: int, draw: int, share: float
    ) -> tuple[Tensor, Stats]:
        """The KL of the steps from `first` on, at the better images."""
        k, noise = first + self._level(sample, factors[first:], "charged", draw), self._noise(sample, draw)
        better, _ = self.pairs.latents(self.policy, sample.chunk.items)
        x, _ = self.policy.steps[k].diffused(better, noise)
        prediction = self.policy.predictor(sample.conditions)(x, k)
        squares = (prediction - self.policy.reference_predictor(sample.conditions)(x, k)).square().flatten(1).sum(1)
        kl = sum(factors[first:]) * squares
        return (self.config.kl_weight * kl).mean() * share, {"charged_kl": kl.mean().item()}

    def _level(self, sample: Sample, factors: list[float], purpose: str, draw: int) -> int:
        """One of the factors' places, in proportion to them; numbered by image, so that one seed gives one run."""
        generator = stream(self.config.seed, purpose, sample.chunk.numbers[0], draw)
        return int(torch.multinomial(torch.tensor(factors), 1, generator=generator))

    def _noise(self, sample: Sample, draw: int) -> Tensor:
        return self.policy.noise([stream(self.config.seed, "noise", number, draw) for number in sample.chunk.numbers])()

    def state_dict(self) -> dict:
        """Nothing beyond the network's."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to take up."""


def objective_of(config: Config, policy: Policy, score: Score | None, items: Any, gathering: Gathering) -> Any:
    """The objective that `config.algorithm` names. items: the prompts, or for dpo the pairs."""
    if config.algorithm == "dpo":
        return Preference(config, policy, items, gathering)
    if config.algorithm == "draft":
        kind = PredictedX0 if config.draft.through == "x0" else LastSteps
    else:
        kind = PolicyGradient
    return kind(config, policy, score, items, gathering)


def spread_choice(factors: Sequence[float], count: int, generator: torch.Generator) -> list[tuple[int, float]]:
    """`count` different steps with weights 1 / probability, whose weighted sums have the sum over all as their mean.

    Steps with a large KL factor, the last but one above all, are taken nearly always: left to chance they would make
    the gradient a row of spikes. Systematic sampling of probabilities that grow with the factor's square root.
    """
    if count >= len(factors):
        return [(k, 1.0) for k in range(len(factors))]
    roots = torch.tensor(factors, dtype=torch.float64).sqrt()
    probabilities = _inclusion(roots / roots.mean() + 1, count)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    order = torch.randperm(len(factors), generator=generator)
    ends = probabilities[order].cumsum(0)
    ends[-1] = count
    counts = (ends - offset).ceil().clamp(min=0)
    taken = torch.diff(counts, prepend=counts.new_zeros(1)) > 0
    return [(k, 1 / probabilities[k].item()) for k in sorted(order[taken].tolist())]


def _inclusion(sizes: Tensor, count: int) -> Tensor:
    """Probabilities proportional to sizes, none above 1, that sum to count."""
    probabilities = sizes / sizes.sum() * count
    while (probabilities > 1).any():
        sure = probabilities >= 1
        rest = count - sure.sum()
        probabilities = torch.where(sure, torch.ones_like(sizes), sizes / sizes[~sure].sum() * rest)
    return probabilities


def reward_figures(rewards: Tensor) -> Stats:
    """Mean, spread and quantiles for the log."""
    low, middle, high = torch.quantile(rewards.float(), rewards.new_tensor([0.1, 0.5, 0.9]).float()).tolist()
    spread = rewards.std().item() if len(rewards) > 1 else 0.0
    figures = {"reward": rewards.mean().item(), "reward_std": spread}
    return figures | {"reward_p10": low, "reward_p50": middle, "reward_p90": high}


def _share_without_spread(rewards: Tensor, groups: Tensor) -> float:
    spreads = [rewards[groups.to(rewards.device) == group].std(unbiased=False) for group in groups.unique()]
    return torch.stack(spreads).lt(1e-8).float().mean().item()
