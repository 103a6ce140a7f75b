"""The losses of all objectives, as pure functions of tensors; descent of a loss raises the objective.

Every online trainer climbs the same thing, per image, with sums over steps and dimensions:

    J = E[ reward - kl_weight * sum_t KL_t ],   KL_t = KL(policy's step || base's step) at the states the policy visits

so the kl_weight a user types is the one a file may state. Two things would quietly change it, and are corrected here:
a baseline that holds the sample itself shrinks the reward's gradient by (n - 1) / n (hence the mean of the *others*),
and dividing advantages by their spread divides the reward's gradient (hence kl_weight is divided by the same number).
`spread` must come from earlier batches: measured on the batch itself it is correlated with the advantages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def returns_to_go(rewards: Tensor, kl: Tensor, kl_weight: float) -> Tensor:
    """What an action at step t still decides: reward - kl_weight * sum_{s > t} KL_s, (steps, n).

    rewards: (n,).  kl: (steps, n). A step's own KL is not in it: its gradient is taken in closed form. The later ones
    are, because a step also decides which states they are paid at; left out, the optimum would be another one.
    """
    later = kl.flip(0).cumsum(0).flip(0) - kl
    return rewards - kl_weight * later


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """Advantages: returns (steps, n) minus the mean of the group's *other* members; groups: (n,) of group numbers.

    Equals n / (n - 1) times (return - group mean): unbiased, where the plain form shrinks. A lone member gets 0.
    """
    _, place, sizes = torch.unique(groups.to(returns.device), return_inverse=True, return_counts=True)
    sums = returns.new_zeros(len(returns), len(sizes)).index_add(1, place, returns)
    others = sizes[place] - 1
    baseline = (sums[:, place] - returns) / others.clamp(min=1)
    return torch.where(others > 0, returns - baseline, torch.zeros_like(returns))


def log_ratio(new: Tensor, old: Tensor, dimensions: int) -> Tensor:
    """(log p_new - log p_old) / dimensions: the mean over dimensions, as DDPO and its successors take it.

    new, old: summed over dimensions. The gradient is that of the sum, divided by `dimensions`; the KL of the same loss
    must be divided too.
    """
    return (new - old) / dimensions


def policy_gradient(
    ratio_log: Tensor, advantages: Tensor, kl: Tensor, *, kl_weight: float, spread: float, clip: float, dimensions: int
) -> Tensor:
    """PPO's clipped surrogate with the exact KL, per (image, step), shaped as its inputs.

    max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) / spread + kl_weight / spread * KL / dimensions

    rho = exp(ratio_log), the mean-over-dimensions convention.  kl: summed over dimensions, with gradient.
    At rho = 1 the gradient is that of -J / (spread * dimensions).
    """
    ratio = ratio_log.exp()
    surrogate = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return (surrogate + kl_weight * kl / dimensions) / spread


def kl_charge(kl: Tensor, *, kl_weight: float, spread: float, dimensions: int) -> Tensor:
    """The KL term of `policy_gradient` alone, kl_weight / spread * KL / dimensions, shaped as kl."""
    return kl_weight / spread * kl / dimensions


def clipped_share(ratio_log: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The share of (image, step) pairs whose surrogate has no gradient left."""
    ratio = ratio_log.exp()
    out = torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip)
    return out.to(ratio.dtype).mean()


def reward_gradient(rewards: Tensor, kl: Tensor, *, kl_weight: float) -> Tensor:
    """-(reward - kl_weight * KL), per image: both with gradient, kl summed over the differentiated steps."""
    return kl_weight * kl - rewards


def preference(better: Tensor, worse: Tensor, *, kl_weight: float) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14), per pair: -log sigmoid(kl_weight * (better - worse)).

    better, worse: (n,), E[log p_policy - log p_base] of the image's whole chain, from `preference_evidence`.
    """
    return -F.logsigmoid(kl_weight * (better - worse))


def preference_evidence(prediction: Tensor, reference: Tensor, target: Tensor, total_factor: float) -> Tensor:
    """How much more likely the policy's chain makes an image than the base's, in nats, (n,); one draw of a step.

    total_factor * (|reference - target|^2 - |prediction - target|^2), squares summed over dimensions. With steps drawn
    in proportion to their kl_factor and total_factor the sum of these, its mean is sum_t E[log p - log p_ref].
    """
    squares = [(output - target).square().flatten(1).sum(1) for output in (reference, prediction)]
    return total_factor * (squares[0] - squares[1])


def imitation(prediction: Tensor, taught: Tensor) -> Tensor:
    """Mean over an image's dimensions of |prediction - taught|^2, (n,). taught: the teacher's, without gradient."""
    return (prediction - taught).square().flatten(1).mean(1)


def value(predicted: Tensor, returns: Tensor) -> Tensor:
    """Mean squared error of the learned baseline."""
    return F.mse_loss(predicted, returns)
