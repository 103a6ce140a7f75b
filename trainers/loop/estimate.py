"""An estimate of a run before it starts: images, updates, hours and memory."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor

from ..data.prompts import epoch_chunks
from ..model.distilled import DistilledPolicy
from ..settings.config import Config
from .run import Run


def announce(run: Run) -> None:
    """Print what the settings come to, with the time and memory of one trial pass. Every process must call it."""
    seconds, peak = _trial(run)
    if not run.accelerator.is_main_process:
        return
    config = run.config
    parameters = sum(p.numel() for p in run.policy.parameters().values())
    left = config.epochs - run.epoch
    lines = [
        f"{config.algorithm} on {run.policy.base.family.name}: {_aim(run)}, LoRA of rank {config.lora.rank} with "
        f"{parameters / 1e6:.2f} M weights",
        f"{config.epochs} epochs x {config.images_per_epoch} images = {config.epochs * config.images_per_epoch} "
        f"images, {config.updates} updates of {config.images_per_update} images on "
        f"{run.accelerator.num_processes} process(es)",
        f"about {left * seconds / 3600:.2f} hours for {left} epochs ({seconds:.1f} s each, by one trial pass), "
        f"{peak / 1e9:.1f} GB at the peak per process",
    ]
    if run.epoch:
        lines.append(f"going on after {run.epoch} epochs")
    print("\n".join(lines), flush=True)


def _aim(run: Run) -> str:
    """What the run trains towards."""
    if isinstance(run.policy, DistilledPolicy):
        return f"the exact blend {run.policy.parts.blend.formula()}"
    return f"{run.rewards.name or 'preference pairs'}, kl_weight {run.config.kl_weight:g}"


def _trial(run: Run) -> tuple[float, float]:
    """(seconds per epoch, peak bytes), from one pass with gradient that is thrown away."""
    policy, accelerator = run.policy, run.accelerator
    chunks = epoch_chunks(run.config, 0, len(run.prompts), accelerator.process_index, accelerator.num_processes)
    prompts = [run.validation_prompts[0]] * len(chunks[0][0].numbers)
    encoded = policy.encode(prompts)
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(len(prompts))])()
    with torch.no_grad():
        policy.predictor(encoded)(x, 0)
        started = time.perf_counter()
        policy.predictor(encoded)(x, 0)
        _synchronise(x)
        forward = time.perf_counter() - started
    started = time.perf_counter()
    policy.predictor(encoded)(x, 0).square().mean().backward()
    _synchronise(x)
    gradient = time.perf_counter() - started
    run.update.optimiser.zero_grad()
    passes = run.config.images_per_epoch / (len(prompts) * accelerator.num_processes)
    return passes * _cost(run.config, forward, gradient), _peak(x)


def _cost(config: Config, forward: float, gradient: float) -> float:
    """Seconds of one chunk: calls of the network without and with gradient."""
    steps = config.sampling.steps
    if config.algorithm == "dpo":
        return config.dpo.draws * 2 * (forward + gradient)
    if config.algorithm == "distil":
        evaluations = len(config.distil.loras)
        return steps * forward + config.reuse * config.distil.steps * (evaluations * forward + gradient)
    if config.algorithm == "draft" and config.draft.through == "last":
        late, early = config.draft.steps, config.draft.kl_steps
        return (steps + early) * forward + (late + early) * gradient
    if config.algorithm == "draft":
        return steps * forward + config.reuse * config.draft.steps * (forward + 2 * gradient)
    trained = config.policy_gradient.trained_steps or steps
    return 2 * steps * forward + trained * config.reuse * gradient


def _peak(x: Tensor) -> float:
    """Bytes held at most: by the device's tensors, or on a CPU by the process; nan where the system does not say."""
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
