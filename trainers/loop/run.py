"""The state of a run: its policy, objective and optimiser, the epochs done, and checkpoints of all of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from ..data.pairs import PairSet
from ..distributed import Gathering
from ..model.distilled import DistilledPolicy
from ..model.lora_policy import LoraPolicy
from ..objectives.choice import objective_of
from ..objectives.objective import Objective
from ..rewards import Rewards
from ..settings.config import Config
from ..sharding import shared_out, whole
from .average import Average, copy
from .checkpoint import load_checkpoint, plain, save_checkpoint
from .epoch import Updater
from .validation import History, TeacherImages

UNNAMED = {"dpo": "preference", "distil": "distilled"}  # what is called so where no reward has a name


@dataclass
class Run:
    """A run in memory. epoch: epochs done.  history: what its validations have shown.

    teacher: the images to come near to, where there is a teacher.
    """

    config: Config
    accelerator: Accelerator
    policy: LoraPolicy
    rewards: Rewards
    prompts: Sequence[str]
    validation_prompts: Sequence[str]
    objective: Objective
    update: Updater
    gathering: Gathering
    folder: Path
    epoch: int = 0
    history: History = field(default_factory=History)
    teacher: TeacherImages | None = None

    @classmethod
    def start(
        cls,
        config: Config,
        accelerator: Accelerator,
        policy: LoraPolicy,
        rewards: Rewards,
        items: Sequence[str] | PairSet,
        validation_prompts: Sequence[str],
    ) -> Run:
        """A fresh run, or the one that its folder's last checkpoint left. items: the prompts, or for dpo the pairs."""
        settings = config.optimisation
        optimiser = torch.optim.AdamW(
            policy.parameters().values(),
            settings.learning_rate,
            betas=tuple(settings.betas),
            weight_decay=settings.weight_decay,
        )
        # not prepared: the accelerator would step a prepared schedule once per process
        schedule = get_scheduler(
            settings.decay if settings.decay != "constant" else "constant_with_warmup",
            optimiser,
            num_warmup_steps=settings.warm_up,
            num_training_steps=config.updates,
        )
        policy.network, optimiser = accelerator.prepare(policy.unwrapped, optimiser)
        policy.network.eval()
        gathering = Gathering(accelerator)
        objective = objective_of(config, policy, rewards.trained, items, gathering)
        update = Updater(
            list(policy.parameters().values()),  # after `prepare`, which replaces them where they are shared out
            optimiser,
            settings.grad_clip,
            accelerator=accelerator,
            network=policy.network,
            schedule=schedule,
            average=Average(policy.parameters(), settings.average),
        )
        prompts = items.prompts if isinstance(items, PairSet) else items
        folder = Path(config.output.folder).expanduser()
        run = cls(
            config, accelerator, policy, rewards, prompts, validation_prompts, objective, update, gathering, folder
        )
        if isinstance(policy, DistilledPolicy):
            silent = policy.base.chain(replace(config.sampling, eta=0.0, noise_level=0.0))
            run.teacher = TeacherImages(policy, validation_prompts, silent)
        state = load_checkpoint(run.checkpoints, config, accelerator.device)
        if state is not None:
            run.load_state(state)
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def title(self) -> str:
        """Name of the LoRA file."""
        return self.config.output.title or self.rewards.name or UNNAMED.get(self.config.algorithm, "")

    def due(self, every: int) -> bool:
        """Whether something that happens every so many epochs, and at the end, happens now."""
        return self.epoch == self.config.epochs or bool(every and self.epoch % every == 0)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs. Every process must call it."""
        scaler = self.accelerator.scaler
        state = {
            "config": plain(self.config),
            "epoch": self.epoch,
            "lora": {name: p.detach() for name, p in self.policy.parameters().items()},
            "optimiser": self.update.optimiser.state_dict(),
            "schedule": self.update.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.update.average.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "best": self.history.best,
            "first": self.history.first,
        }
        return whole(state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        copy(state["lora"], self.policy.parameters())
        self.update.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.update.optimiser.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:  # all but the count of updates
                    moments[name] = shared_out(value, parameter)
        self.update.schedule.load_state_dict(state["schedule"])
        self.objective.load_state_dict(state["objective"])
        self.update.average.load_state_dict(state["average"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        first = state["first"] and {name: scores.cpu() for name, scores in state["first"].items()}
        self.history = History(first, state["best"])

    def save(self) -> None:
        """A checkpoint, by the main process. Every process must call it."""
        state = self.state()
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, self.epoch, state)
        self.accelerator.wait_for_everyone()
