"""The training loop, read from top to bottom: open a run; sample, score, update, validate, save; write the LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from .accelerator import open_accelerator
from .data.pairs import PairSet
from .data.prompts import epoch_chunks, held_out, read_prompts, shuffled
from .distributed import Gathering
from .files import lora as export
from .files.facts import facts_of
from .loop import validation
from .loop.average import copy
from .loop.checkpoint import check_space, checkpoint_bytes, load_checkpoint
from .loop.epoch import collect, update_policy
from .loop.estimate import announce
from .loop.log import Log, save_grid
from .loop.run import Run
from .loop.stop import StopFlag
from .model.base import Base, open_base
from .model.distilled import DistilledPolicy, Parts
from .model.lora_policy import LoraPolicy
from .objectives.objective import Stats
from .objectives.predicted_x0 import check_chain
from .rewards import Rewards, open_rewards
from .settings.config import Config
from .settings.rules import check

Items = Sequence[str] | PairSet
"""The prompts, or for dpo the pairs."""


def train(config: Config, rewards: Rewards | None = None, base: Base | None = None) -> Path:
    """Run the training that `config` describes, or go on with it, and return the LoRA's path.

    rewards, base: instead of those that the configuration names. Raises BlendError for what cannot work, before any
    time is spent where that can be known, and KeyboardInterrupt after a stop was asked for and the state was saved.
    """
    run = open_run(config, rewards, base)
    announce(run)
    with StopFlag() as stop_flag:
        done = train_epochs(run, lambda: run.gathering.any(stop_flag.is_set))
    path = write_lora(run)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    if not done:
        raise KeyboardInterrupt
    return path


def open_run(config: Config, rewards: Rewards | None, base: Base | None) -> Run:
    """Everything that the run needs; what can be refused is refused before what is large is loaded."""
    accelerator = open_accelerator(config)
    check(config, accelerator.num_processes)
    folder = Path(config.output.folder).expanduser()
    check_space(folder, checkpoint_bytes(config))
    load_checkpoint(folder / "checkpoints", config, torch.device("cpu"))  # refuses one of other settings
    items = PairSet(config.prompts.pairs) if config.algorithm == "dpo" else read_prompts(config.prompts.file)
    items, validation_prompts = _with_validation_prompts(config, items)
    rewards = _rewards(config, accelerator, rewards)
    parts = Parts.of(config) if config.algorithm == "distil" else None
    base = base or open_base(config)
    check_chain(config, base.family.transition)
    for part in base.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(accelerator.device)
    policy = LoraPolicy(base, config) if parts is None else DistilledPolicy(base, config, parts)
    return Run.start(config, accelerator, policy, rewards, items, validation_prompts)


def train_epochs(run: Run, stopping: Callable[[], bool]) -> bool:
    """All epochs that are left; False where a stop was asked for before the last. Every process must call it.

    stopping: whether a stop was asked for on any process, the same answer on all.
    """
    config, output, accelerator = run.config, run.config.output, run.accelerator
    log = Log(run.folder, config.epochs, run.epoch, accelerator)
    try:
        if run.epoch == 0 and output.validate_every:
            log.write(-1, validate(run, log))  # the start, mostly the base: epoch -1 of the log
        while run.epoch < config.epochs:
            # sample and score
            started = time.perf_counter()
            chunks = epoch_chunks(
                config, run.epoch, len(run.prompts), accelerator.process_index, accelerator.num_processes
            )
            samples = collect(run.objective, chunks, stopping)
            if samples is None:  # nothing of the epoch was learnt yet: the state is that of its start
                run.save()
                log.say(f"stopped; saved after {run.epoch} epochs")
                return False
            samples, figures = run.objective.compare(samples, run.epoch)

            # update
            figures |= run.gathering.mean(update_policy(config, run.objective, samples, run.update, run.epoch))
            seconds = time.perf_counter() - started
            figures |= {"seconds": seconds, "images_per_second": config.images_per_epoch / seconds}
            run.epoch += 1
            stop = stopping()

            # validate
            if run.due(output.validate_every):
                figures |= validate(run, log)
            figures["learning_rate"] = run.update.optimiser.param_groups[0]["lr"]
            log.write(run.epoch - 1, figures)

            # save
            reason = reason_to_end(run, figures)
            if run.due(output.checkpoint_every) or stop or reason:
                run.save()
            if reason:
                log.say(reason)
                return True
            if stop:
                log.say(f"stopped; saved after {run.epoch} epochs")
                return run.epoch >= config.epochs
        return True
    finally:
        log.close()


def validate(run: Run, log: Log) -> Stats:
    """Scores on fixed prompts and noise, the grid, the best state, the alarm. Every process must call it."""
    output, name = run.config.output, run.rewards.name
    if not output.validate_every or not (run.rewards.all or run.teacher):
        return {}
    size = min(run.config.optimisation.images_per_pass, output.validation_images)
    if run.teacher is not None:
        return _distance(run, run.teacher, size)
    with run.update.average.applied():
        result = validation.validate(
            run.policy, run.rewards.all, run.validation_prompts, output.validation_images, size, run.gathering
        )
    _save_grid(run, result.images)
    if run.history.first is None:
        run.history.first = result.scores
    if run.rewards.trained is not None:
        run.history.keep_best(result.objective(name, run.config.kl_weight), run.epoch, run.update.average.average)
        if output.alarm != "off":
            run.history.compare(result.scores, name)
    if run.history.hacking:
        log.say(
            f"alarm at epoch {run.epoch}: {name} rose and {', '.join(run.history.hacking)} fell, each by two standard "
            "errors. This may be reward hacking: look at the grids, raise kl_weight, or stop earlier."
        )
    return result.figures()


def _distance(run: Run, teacher: validation.TeacherImages, size: int) -> Stats:
    """How far the images are from the teacher's; the nearest state is the best one."""
    with run.update.average.applied():
        distance, images = teacher.distance(run.config.output.validation_images, size, run.gathering)
    _save_grid(run, images)
    run.history.keep_best(-distance, run.epoch, run.update.average.average)
    return {"valid_distance": distance}


def _save_grid(run: Run, images: Tensor) -> None:
    count = run.config.output.grid
    if run.accelerator.is_main_process and count:
        save_grid(images[:count], run.folder / "grids" / f"epoch-{run.epoch:06d}.png")


def reason_to_end(run: Run, figures: Stats) -> str:
    """Why the run ends before its last epoch, or an empty text."""
    output = run.config.output
    kl = figures.get("valid_path_kl", figures.get("path_kl", 0.0))
    if output.kl_budget and kl > output.kl_budget:
        return f"ended: the path KL is {kl:.3g} nats, above output.kl_budget {output.kl_budget:g}"
    if output.alarm == "stop" and run.history.hacking:
        return f"ended: the hacking alarm went off for {', '.join(run.history.hacking)} (output.alarm is stop)"
    return ""


def write_lora(run: Run) -> Path:
    """The best validated state, or the last, as a file. Every process must call it; the main one writes."""
    config, policy = run.config, run.policy
    trained = {name: p.detach().clone() for name, p in policy.parameters().items()}
    last = {"epoch": run.epoch, "lora": run.update.average.average}
    chosen = run.history.best if config.output.keep_best and run.history.best else last
    copy(chosen["lora"], policy.parameters())
    family, path = policy.base.family, run.folder / f"{run.title}.safetensors"
    tensors = export.lora_tensors(policy.unwrapped, family.spelling, getattr(torch, config.output.dtype))
    if run.accelerator.is_main_process:
        facts = facts_of(config, policy, run.rewards, run.prompts, title=run.title, epochs=chosen["epoch"])
        export.save_lora(path, tensors, export.header(facts, family, tensors))
    copy(trained, policy.parameters())  # after the file: the tensors may be the parameters themselves
    return path


def _rewards(config: Config, accelerator: Accelerator, rewards: Rewards | None) -> Rewards:
    """The run's rewards, where reward.place says."""
    everywhere = config.reward.place == "every"
    rewards = rewards or open_rewards(config, accelerator.device, held=everywhere or accelerator.is_main_process)
    rewards.check(config)
    return rewards if everywhere else rewards.on_main(config, Gathering(accelerator))


def _with_validation_prompts(config: Config, items: Items) -> tuple[Items, Sequence[str]]:
    """What is trained on, and the prompts of validation: of their file, or of training in an order of their own.

    A distillation, which is judged by what it does elsewhere, has some of the prompts held out for that.
    """
    if config.prompts.validation_file:
        return items, read_prompts(config.prompts.validation_file)
    if config.algorithm == "distil" and not isinstance(items, PairSet):
        return held_out(items)
    prompts = items.prompts if isinstance(items, PairSet) else items
    return items, [prompts[item] for item in shuffled(0, 0, len(prompts), len(prompts))]
