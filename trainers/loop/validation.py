"""Validation on fixed prompts and noise: rewards, path KL to the base, and the best state so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..distributed import Gathering
from ..model.policy import Policy
from ..model.rollout import rollout
from ..objectives.objective import Stats
from ..objectives.online import Score
from ..seeding import stream
from .log import hacked


@dataclass(frozen=True)
class Validation:
    """scores: by reward, (n,) each, in the images' order on every process.  kl: (n,), of whole paths, in nats.

    images: (m, 3, h, w), this process's, the first ones first.
    """

    scores: dict[str, Tensor]
    kl: Tensor
    images: Tensor

    def objective(self, name: str, kl_weight: float) -> float:
        """Mean of reward - kl_weight * KL."""
        return (self.scores[name] - kl_weight * self.kl).mean().item()

    def figures(self) -> Stats:
        """The means, for the log."""
        means = {f"valid_{name}": scores.mean().item() for name, scores in self.scores.items()}
        return means | {"valid_path_kl": self.kl.mean().item()}


class Best(TypedDict):
    """The best validated state: its objective, the epochs done, and the LoRA's weights by name."""

    objective: float
    epoch: int
    lora: dict[str, Tensor]


@dataclass
class History:
    """What the validations of a run have shown.

    first: the base's scores by reward, (n,) each.  hacking: watched rewards that had fallen at the last validation
    while the trained one had risen (log.hacked).
    """

    first: dict[str, Tensor] | None = None
    best: Best | None = None
    hacking: tuple[str, ...] = ()

    def keep_best(self, objective: float, epoch: int, lora: Mapping[str, Tensor]) -> None:
        """Copy the LoRA where its objective is the best so far. epoch: epochs done; the base itself is no result."""
        if epoch and (self.best is None or objective > self.best["objective"]):
            copies = {name: value.clone() for name, value in lora.items()}
            self.best = {"objective": objective, "epoch": epoch, "lora": copies}

    def compare(self, scores: Mapping[str, Tensor], name: str) -> None:
        """Set `hacking`, from these scores and the base's. name: of the reward that is trained."""
        watched = {other: (self.first[other], after) for other, after in scores.items() if other != name}
        self.hacking = tuple(hacked((self.first[name], scores[name]), watched))


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
        values = torch.stack(parts)  # (rounds, size)
        if processes > 1:
            gathered = accelerator.gather(values[None].to(accelerator.device))  # (processes, rounds, size)
            values = gathered.transpose(0, 1)
        return values.flatten().float().cpu()[:count]

    together = {name: joined(parts) for name, parts in scores.items()}
    return Validation(together, joined(kls), torch.cat(images))
