"""The same prompts and noise again and again: how good a state is, and how far from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import Gathering
from ..model.policy import Policy
from ..model.rollout import rollout
from ..objectives.online import Score
from ..seeding import stream


@dataclass(frozen=True)
class Validation:
    """scores: by reward, (n,) each, in the images' order on every process.  images: this process's first ones."""

    scores: dict[str, Tensor]
    kl: Tensor
    images: Tensor

    def objective(self, name: str, kl_weight: float) -> float:
        """Mean of reward - kl_weight * KL."""
        return (self.scores[name] - kl_weight * self.kl).mean().item()


@torch.no_grad()
def validate(
    policy: Policy, rewards: Mapping[str, Score], prompts: Sequence[str], count: int, size: int, gathering: Gathering
) -> Validation:
    """Sample `count` images (rounded up to whole passes of `size` on every process) and score them."""
    accelerator = gathering.accelerator
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rounds = -(-count // (size * processes))
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    kls, images = [], []
    for turn in range(rounds):
        first = (turn * processes + process) * size
        numbers = range(first, first + size)
        chosen = [prompts[number % len(prompts)] for number in numbers]
        conditions = policy.encode(chosen)
        noise = policy.noise([stream(0, "validation", number) for number in numbers])
        path = rollout(policy.steps, noise, policy.predictor(conditions), policy.reference_predictor(conditions))
        pictures = policy.decode(path.latents)
        for name, reward in rewards.items():
            scores[name].append(reward(pictures, chosen).detach())
        kls.append(path.kl.sum(0))
        images.append(pictures.cpu())

    def joined(parts: list[Tensor]) -> Tensor:
        own = torch.stack(parts)  # (rounds, size)
        if processes > 1:
            own = accelerator.gather(own[None].to(accelerator.device)).transpose(0, 1)  # (rounds, processes, size)
        return own.flatten().float().cpu()[:count]

    together = {name: joined(parts) for name, parts in scores.items()}
    return Validation(together, joined(kls), torch.cat(images))
