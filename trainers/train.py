"""The training loop, read from top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType
from diffusers.optimization import get_scheduler
from torch import Tensor

from ..blend_core.errors import BlendError
from .data.pairs import PairSet
from .data.prompts import epoch_chunks, prompts_sha256, read_prompts, shuffled
from .distributed import Gathering
from .files import lora as export
from .loop.average import Average, copy
from .loop.checkpoint import check_same, check_space, checkpoints, load_checkpoint, plain, save_checkpoint
from .loop.epoch import Stopped, Updater, collect, update_policy
from .loop.log import Log, hacked, save_grid
from .loop.stop import StopWish
from .loop.validation import Validation, validate
from .model.base import Base, base_sha256, open_base
from .model.lora_policy import LoraPolicy
from .objectives.choice import objective_of
from .objectives.objective import Stats
from .objectives.predicted_x0 import check_chain
from .rewards import Rewards, open_rewards
from .settings.config import Config
from .settings.rules import check
from .sharding import shared_out, whole


def train(config: Config, rewards: Rewards | None = None, base: Base | None = None) -> Path:
    """Run the training that `config` describes, or go on with it, and return the LoRA's path.

    rewards, base: instead of those that the configuration names. Raises BlendError for what cannot work, before any
    time is spent where that can be known, and KeyboardInterrupt after a stop was asked for and the state was saved.
    """
    accelerator = _accelerator(config)
    _check_distribution(accelerator)
    check(config, accelerator.num_processes)
    folder = Path(config.output.folder).expanduser()
    check_space(folder, _checkpoint_bytes(config))
    _refuse_other_settings(folder, config)
    items = PairSet(config.prompts.pairs) if config.algorithm == "dpo" else read_prompts(config.prompts.file)
    everywhere = config.reward.place == "every"
    rewards = rewards or open_rewards(config, accelerator.device, held=everywhere or accelerator.is_main_process)
    rewards.check(config)
    if not everywhere:
        rewards = rewards.on_main(config, Gathering(accelerator))
    base = base or open_base(config)
    check_chain(config, base.family.transition)
    for part in base.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(accelerator.device)
    run = Run.start(config, accelerator, LoraPolicy(base, config), rewards, items, folder)
    run.announce()
    with StopWish() as wish:
        done = run.loop(wish)
    path = run.export()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if not done:
        raise KeyboardInterrupt
    return path


@dataclass
class Run:
    """What the loop works on. best: the best validated objective, its epoch and its LoRA.  first: the base's scores."""

    config: Config
    accelerator: Accelerator
    policy: LoraPolicy
    rewards: Rewards
    items: Any
    objective: Any
    update: Updater
    gathering: Gathering
    folder: Path
    epoch: int = 0
    best: dict[str, Any] | None = None
    first: dict[str, Tensor] | None = None
    hacking: tuple[str, ...] = ()

    @classmethod
    def start(
        cls, config: Config, accelerator: Accelerator, policy: LoraPolicy, rewards: Rewards, items: Any, folder: Path
    ) -> Run:
        """A fresh run, or the one its folder's last checkpoint left."""
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
        run = cls(config, accelerator, policy, rewards, items, objective, update, gathering, folder)
        state = load_checkpoint(folder / "checkpoints", config, accelerator.device)
        if state is not None:
            run.load_state(state)
        return run

    def loop(self, wish: StopWish) -> bool:
        """All epochs that are left; False where a stop was asked for."""
        config, output = self.config, self.config.output
        log = Log(self.folder, config.epochs, self.epoch, self.accelerator)
        try:
            if self.epoch == 0 and output.validate_every:
                log.write(-1, self.validate(log))  # the base: epoch -1 of the log
            while self.epoch < config.epochs:
                started = time.perf_counter()
                try:
                    figures = self.run_epoch(lambda: self.gathering.any(wish.wished))
                except Stopped:
                    self.save()
                    log.say(f"stopped; saved after {self.epoch} epochs")
                    return False
                seconds = time.perf_counter() - started
                figures |= {"seconds": seconds, "images_per_second": config.images_per_epoch / seconds}
                self.epoch += 1
                stop = self.gathering.any(wish.wished)
                if self.due(output.validate_every):
                    figures |= self.validate(log)
                figures["learning_rate"] = self.update.optimiser.param_groups[0]["lr"]
                log.write(self.epoch - 1, figures)
                reason = self.reason_to_end(figures)
                if self.due(output.checkpoint_every) or stop or reason:
                    self.save()
                if reason:
                    log.say(reason)
                    return True
                if stop:
                    log.say(f"stopped; saved after {self.epoch} epochs")
                    return self.epoch >= config.epochs
            return True
        finally:
            log.close()

    def run_epoch(self, asked_to_stop) -> Stats:
        """One round of sampling and updating."""
        chunks = epoch_chunks(
            self.config, self.epoch, len(self.items), self.accelerator.process_index, self.accelerator.num_processes
        )
        samples, figures = self.objective.compare(collect(self.objective, chunks, asked_to_stop), self.epoch)
        stats = update_policy(self.config, self.objective, samples, self.update, self.epoch)
        return figures | self.gathering.mean(stats)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many epochs, and at the end, happens now."""
        return self.epoch == self.config.epochs or bool(every and self.epoch % every == 0)

    def validate(self, log: Log) -> Stats:
        """Scores on fixed prompts and noise, the grid, the best state, the alarm."""
        output = self.config.output
        if not output.validate_every or not self.rewards.all:
            return {}
        size = min(self.config.optimisation.images_per_pass, output.validation_images)
        with self.update.average.applied():
            result = validate(
                self.policy, self.rewards.all, self.validation_prompts(), output.validation_images, size, self.gathering
            )
        if self.accelerator.is_main_process and output.grid:
            save_grid(result.images[: output.grid], self.folder / "grids" / f"epoch-{self.epoch:06d}.png")
        if self.first is None:
            self.first = result.scores
        self._keep_best(result)
        self._alarm(result, log)
        means = {f"valid_{name}": scores.mean().item() for name, scores in result.scores.items()}
        return means | {"valid_path_kl": result.kl.mean().item()}

    def _keep_best(self, result: Validation) -> None:
        objective = result.objective(self.rewards.name, self.config.kl_weight)
        if self.epoch and (self.best is None or objective > self.best["objective"]):  # the base itself is no result
            lora = {name: value.clone() for name, value in self.update.average.average.items()}
            self.best = {"objective": objective, "epoch": self.epoch, "lora": lora}

    def _alarm(self, result: Validation, log: Log) -> None:
        self.hacking = ()
        if self.config.output.alarm == "off":
            return
        name = self.rewards.name
        watched = {other: (self.first[other], scores) for other, scores in result.scores.items() if other != name}
        self.hacking = tuple(hacked((self.first[name], result.scores[name]), watched))
        if self.hacking:
            log.say(
                f"alarm at epoch {self.epoch}: {name} rose and {', '.join(self.hacking)} fell, each by two standard "
                "errors. This may be reward hacking: look at the grids, raise kl_weight, or stop earlier."
            )

    def reason_to_end(self, figures: Stats) -> str:
        """Why the run ends before its last epoch, or an empty text."""
        output = self.config.output
        kl = figures.get("valid_path_kl", figures.get("path_kl", 0.0))
        if output.kl_budget and kl > output.kl_budget:
            return f"ended: the path KL is {kl:.3g} nats, above output.kl_budget {output.kl_budget:g}"
        if output.alarm == "stop" and self.hacking:
            return f"ended: the hacking alarm went off for {', '.join(self.hacking)} (output.alarm is stop)"
        return ""

    def validation_prompts(self) -> Sequence[str]:
        """Of the validation file, or the training prompts in an order of their own."""
        if self.config.prompts.validation_file:
            return read_prompts(self.config.prompts.validation_file)
        prompts = self.items.prompts if isinstance(self.items, PairSet) else self.items
        return [prompts[item] for item in shuffled(0, 0, len(prompts), len(prompts))]

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
            "best": self.best,
            "first": self.first,
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
        self.epoch, self.best = state["epoch"], state["best"]
        self.first = state["first"] and {name: scores.cpu() for name, scores in state["first"].items()}

    def save(self) -> None:
        """A checkpoint, by the main process."""
        state = self.state()
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder / "checkpoints", self.epoch, state)
        self.accelerator.wait_for_everyone()

    @property
    def title(self) -> str:
        """Name of the LoRA file."""
        return self.config.output.title or self.rewards.name or "preference"

    @property
    def path(self) -> Path:
        """The LoRA file."""
        return self.folder / f"{self.title}.safetensors"

    def export(self) -> Path:
        """Write the LoRA: the best validated state, or the last. Every process must call it; the main one writes."""
        own = {name: p.detach().clone() for name, p in self.policy.parameters().items()}
        last = {"epoch": self.epoch, "lora": self.update.average.average}
        chosen = self.best if self.config.output.keep_best and self.best else last
        copy(chosen["lora"], self.policy.parameters())
        family = self.policy.base.family
        dtype = getattr(torch, self.config.output.dtype)
        tensors = export.lora_tensors(self.policy.unwrapped, family.spelling, dtype)
        if self.accelerator.is_main_process:
            export.save_lora(self.path, tensors, export.header(self.facts(chosen["epoch"]), family, tensors))
        copy(own, self.policy.parameters())  # after the file: the tensors may be the parameters themselves
        return self.path

    def facts(self, epoch: int) -> dict[str, Any]:
        """What the file says of its making; `epoch`: how many were done."""
        config, base = self.config, self.policy.base
        flow = base.family.transition == "flow"
        standardised = config.algorithm in ("dpok", "grpo") and config.policy_gradient.standardise
        name = config.base.name or Path(config.base.path.rstrip("/")).name
        return {
            "title": self.title,
            "author": config.output.author,
            "description": f"Reward LoRA for {self.title} on {name}, KL weight {config.kl_weight:g}",
            "rewards": self.rewards.facts(),
            "kl_weight": config.kl_weight,
            "kl_form": "exact",
            "algorithm": config.algorithm,
            "transition": base.family.transition,
            "eta": None if flow else config.sampling.eta,
            "noise_level": config.sampling.noise_level if flow else None,
            "sampling_steps": config.sampling.steps,
            "cfg": config.sampling.cfg,
            "guidance": "distilled" if base.distilled else "",
            "size": base.size,
            "base_model": name,
            "base_sha256": base_sha256(config),
            "prediction_type": base.pipe.scheduler.config.get("prediction_type", ""),
            "rank": config.lora.rank,
            "step": epoch * config.updates_per_epoch * config.reuse,
            "images_seen": epoch * config.images_per_epoch,
            "learning_rate": config.optimisation.learning_rate,
            "seed": config.seed,
            "prompts_sha256": prompts_sha256(self.items.prompts if isinstance(self.items, PairSet) else self.items),
            "advantage": "divided by the running spread of returns, and the KL term with it" if standardised else "",
            "command": export.training_command(),
            "version": _version(),
        }

    def announce(self) -> None:
        """Print what the settings come to, with the time and memory of one trial pass."""
        seconds, peak = self._trial()
        if not self.accelerator.is_main_process:
            return
        config = self.config
        parameters = sum(p.numel() for p in self.policy.parameters().values())
        left = config.epochs - self.epoch
        lines = [
            f"{config.algorithm} on {self.policy.base.family.name}: {self.rewards.name or 'preference pairs'}, "
            f"kl_weight {config.kl_weight:g}, LoRA of rank {config.lora.rank} with {parameters / 1e6:.2f} M weights",
            f"{config.epochs} epochs x {config.images_per_epoch} images = {config.epochs * config.images_per_epoch} "
            f"images, {config.updates} updates of {config.images_per_update} images on "
            f"{self.accelerator.num_processes} process(es)",
            f"about {left * seconds / 3600:.2f} hours for {left} epochs ({seconds:.1f} s each, by one trial pass), "
            f"{peak / 1e9:.1f} GB at the peak per process",
        ]
        if self.epoch:
            lines.append(f"going on after {self.epoch} epochs")
        print("\n".join(lines), flush=True)

    def _trial(self) -> tuple[float, float]:
        """(seconds per epoch, peak bytes), from one pass with gradient that is thrown away."""
        chunk = epoch_chunks(
            self.config, 0, len(self.items), self.accelerator.process_index, self.accelerator.num_processes
        )
        chunk = chunk[0][0]
        prompts = [self.validation_prompts()[0]] * len(chunk.numbers)
        conditions = self.policy.encode(prompts)
        x = self.policy.noise([torch.Generator().manual_seed(i) for i in range(len(prompts))])()
        with torch.no_grad():
            self.policy.predictor(conditions)(x, 0)
            started = time.perf_counter()
            self.policy.predictor(conditions)(x, 0)
            _synchronise(x)
            forward = time.perf_counter() - started
        started = time.perf_counter()
        self.policy.predictor(conditions)(x, 0).square().mean().backward()
        _synchronise(x)
        gradient = time.perf_counter() - started
        self.update.optimiser.zero_grad()
        passes = self.config.images_per_epoch / (len(prompts) * self.accelerator.num_processes)
        return passes * _cost(self.config, forward, gradient), _peak(x)


def _cost(config: Config, forward: float, gradient: float) -> float:
    """Seconds of one chunk: calls of the network without and with gradient."""
    steps = config.sampling.steps
    if config.algorithm == "dpo":
        return config.dpo.draws * 2 * (forward + gradient)
    if config.algorithm == "draft" and config.draft.through == "last":
        late, early = config.draft.steps, config.draft.kl_steps
        return (steps + early) * forward + (late + early) * gradient
    if config.algorithm == "draft":
        return steps * forward + config.reuse * config.draft.steps * (forward + 2 * gradient)
    trained = config.policy_gradient.trained_steps or steps
    return 2 * steps * forward + trained * config.reuse * gradient


def _peak(x: Tensor) -> float:
    if x.is_cuda:
        return torch.cuda.max_memory_allocated(x.device)
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _accelerator(config: Config) -> Accelerator:
    trackers = list(config.output.trackers)
    _check_trackers(trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=config.optimisation.precision,
            log_with=trackers or None,
            project_dir=str(Path(config.output.folder).expanduser()),
            cpu=not _has_device(),
        )
        accelerator.init_trackers("diffusion-blend", config=_flat_numbers(config))
    except (ValueError, ImportError) as error:
        raise BlendError(
            f"output.trackers or optimisation.precision cannot be used here: {str(error).splitlines()[0]} Install the "
            "tracker, or leave it out."
        ) from error
    return accelerator


def _check_distribution(accelerator: Accelerator) -> None:
    """Raise BlendError for ways of sharing a network out that the loop has not been written for."""
    kind = accelerator.distributed_type
    sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if sharded and not getattr(accelerator, "is_fsdp2", False):
        raise BlendError(
            f"accelerate was configured for {kind.value}, expected plain data parallelism or FSDP with fsdp_version 2. "
            "Choose one of these in accelerate's configuration."
        )


def _check_trackers(names: Sequence[str]) -> None:
    """Raise BlendError for a tracker without its package, which accelerate would leave out without a word."""
    installed = {str(each) for each in get_available_trackers()}
    for name in names:
        if name in LoggerType.list() and name not in installed | {"all"}:
            raise BlendError(
                f"output.trackers names {name}, whose package is not installed (installed here: "
                f"{', '.join(sorted(installed)) or 'none'}). Install it, or leave {name} out: log.jsonl remains."
            )


def _has_device() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _flat_numbers(config: Config) -> dict[str, Any]:
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in plain(config).items()}


def _refuse_other_settings(folder: Path, config: Config) -> None:
    """Before anything large is loaded."""
    found = checkpoints(folder / "checkpoints")
    if found:
        state = load_checkpoint(folder / "checkpoints", config, torch.device("cpu"))
        check_same(config, state["config"], found[-1])


def _checkpoint_bytes(config: Config) -> int:
    """A generous guess before the network is known: LoRA, its best copy and two moments, three checkpoints of them."""
    return config.lora.rank * 256 * 4096 * 4 * 4 * 3


def _version() -> str:
    from .. import __version__

    return __version__
