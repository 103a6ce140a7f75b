"""Validation on fixed prompts and noise: rewards and path KL to the base, or the distance to a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from ..distributed import Gathering
from ..model.chain import Step
from ..model.policy import Policy, TaughtPolicy
from ..model.rollout import Predict, rollout
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

    def measure(numbers: range) -> tuple[dict[str, Tensor], Tensor]:
        chosen = [prompts[number % len(prompts)] for number in numbers]
        conditions = policy.encode(chosen)
        reference = policy.reference_predictor(conditions)
        path = rollout(policy.steps, _noise(policy, numbers), policy.predictor(conditions), reference)
        pictures = policy.decode(path.latents)
        scores = {name: reward(pictures, chosen).detach() for name, reward in rewards.items()}
        return scores | {_KL: path.kl.sum(0)}, pictures

    values, images = _in_rounds(measure, count, size, gathering)
    return Validation({name: values[name] for name in rewards}, values[_KL], images)


@dataclass
class TeacherImages:
    """The distance of a policy's images to its teacher's, of the same prompts and noise.

    The teacher does not change, so that its images are made once. prompts: none that was trained on.  steps: a chain of
    the policy's timesteps, such as the one without noise.
    """

    policy: TaughtPolicy
    prompts: Sequence[str]
    steps: Sequence[Step]
    made: dict[int, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def distance(self, count: int, size: int, gathering: Gathering) -> tuple[float, Tensor]:
        """(root of the mean squared difference of `count` images' pixels, this process's images (m, 3, h, w))."""

        def measure(numbers: range) -> tuple[dict[str, Tensor], Tensor]:
            conditions = self.policy.encode([self.prompts[number % len(self.prompts)] for number in numbers])
            if numbers[0] not in self.made:
                self.made[numbers[0]] = self._images(numbers, self.policy.teacher_predictor(conditions))
            images = self._images(numbers, self.policy.predictor(conditions))
            return {"square": (images - self.made[numbers[0]]).square().flatten(1).mean(1)}, images

        values, images = _in_rounds(measure, count, size, gathering)
        return values["square"].mean().sqrt().item(), images

    def _images(self, numbers: range, predict: Predict) -> Tensor:
        return self.policy.decode(rollout(self.steps, _noise(self.policy, numbers), predict).latents).cpu()


_KL = "path KL"


def _noise(policy: Policy, numbers: range) -> Callable[[], Tensor]:
    return policy.noise([stream(0, "validation", number) for number in numbers])


def _in_rounds(
    measure: Callable[[range], tuple[dict[str, Tensor], Tensor]], count: int, size: int, gathering: Gathering
) -> tuple[dict[str, Tensor], Tensor]:
    """(values by name, (count,) each, in the images' order on every process; this process's images).

    measure: of the images of these numbers, `size` of them, their values, (size,) each, and the images.
    """
    accelerator = gathering.accelerator
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    measured, images = [], []
    for turn in range(-(-count // (size * processes))):
        first = (turn * processes + process) * size
        values, pictures = measure(range(first, first + size))
        measured.append(values)
        images.append(pictures.cpu())

    def joined(parts: list[Tensor]) -> Tensor:
        values = torch.stack(parts)  # (rounds, size)
        if processes > 1:
            gathered = accelerator.gather(values[None].to(accelerator.device))  # (processes, rounds, size)
            values = gathered.transpose(0, 1)
        return values.flatten().float().cpu()[:count]

    return {name: joined([values[name] for values in measured]) for name in measured[0]}, torch.cat(images)
