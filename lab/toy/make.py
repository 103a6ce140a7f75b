"""Make the toy studio from its seeds: `python -m diffusion_blend.lab.toy.make` (about an hour on two cores).

Each part is skipped when its files are there already; delete a part's files to make it again.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from .align import Alignment, Policy, random_prompts
from .model import STUDIO
from .rewards import toy_rewards
from .rollout import rollout, rollout_with_kl
from .scorer import Classifier, accuracy, load_classifier, save_classifier, train_classifier
from .train_base import BaseTraining

SCORER = {"seed": 1, "width": 24}
JUDGE = {"seed": 2, "width": 32}  # never a reward: it tells how good the samples are
# What one unit of each reward weighs, chosen so that the three bases move about equally far at one KL weight.
SCALES = {"calm": 1.0, "vivid": 1.0, "faithful": 0.5}
STATISTICS = 96  # images of the base that give the rewards their zero and unit
SAMPLES = 256  # images per measurement


def main() -> None:
    """Everything that is not there yet, then `training.json` with the settings and what was measured."""
    torch.set_num_threads(1)
    make_base(STUDIO.parent / "run")
    make_classifier("scorer", SCORER)
    make_classifier("judge", JUDGE)
    make_statistics()
    make_loras()
    (STUDIO / "training.json").write_text(json.dumps(measured(), indent=1))


def make_base(run: Path) -> None:
    """Train the base model in two processes and keep its folder."""
    if (STUDIO / "base").exists():
        return
    processes = ["--standalone", "--nproc_per_node=2", "-m", "diffusion_blend.lab.toy.train_base", str(run)]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *processes], check=True)
    shutil.copytree(run / "base", STUDIO / "base")


def make_classifier(name: str, settings: dict) -> None:
    """Train and save one classifier."""
    path = STUDIO / f"{name}.safetensors"
    if not path.exists():
        save_classifier(train_classifier(**settings), path, settings["width"])


def judge() -> Classifier:
    """The classifier that never served as a reward."""
    return load_classifier(STUDIO / "judge.safetensors", JUDGE["width"])


def samples(policy: Policy, count: int, seed: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Images (count, 3, 32, 32), their prompts, and each image's path KL to the base (count,)."""
    generator = torch.Generator().manual_seed(seed)
    images, prompts, kls = [], [], []
    for _ in range(0, count, 64):
        batch = random_prompts(64, generator)
        noise = policy.noise(64, generator)
        predict, reference = policy.predictor(batch), policy.reference_predictor(batch)
        latents, kl = rollout_with_kl(predict, reference, policy.levels, noise, generator)
        images.append(policy.decode(latents).clamp(0, 1).detach())
        prompts += batch
        kls.append(kl)
    return torch.cat(images), prompts, torch.cat(kls)


def make_statistics() -> None:
    """Mean and spread of each raw reward over samples of the base, and the spread of its surrogate."""
    path = STUDIO / "rewards.json"
    if path.exists():
        return
    policy, generator = Policy(Alignment()), torch.Generator().manual_seed(3)
    prompts = random_prompts(STATISTICS, generator)
    noise = policy.noise(STATISTICS, generator)
    states = rollout(policy.predictor(prompts), policy.levels, noise, generator)
    images = policy.decode(states[-1]).clamp(0, 1).detach()
    rewards = toy_rewards()
    raw = {name: reward.raw(images, prompts) for name, reward in rewards.items()}
    statistics = {
        name: {"mean": scores.mean().item(), "std": scores.std().item(), "scale": SCALES[name]}
        for name, scores in raw.items()
    }
    surrogates = {name: reward.surrogate(images, prompts).std().item() for name, reward in rewards.items()}
    (STUDIO / "surrogates.json").write_text(json.dumps(surrogates, indent=1))
    path.write_text(json.dumps(statistics, indent=1))


def make_loras() -> None:
    """Train the LoRAs that are missing, two at a time, in processes of one thread."""
    missing = [name for name in SCALES if not (STUDIO / "loras" / f"{name}.safetensors").exists()]
    running = []
    for name in missing:
        running.append(subprocess.Popen([sys.executable, "-m", "diffusion_blend.lab.toy.align", name]))
        if len(running) == 2:
            _finish(running.pop(0))
    for process in running:
        _finish(process)


def _finish(process: subprocess.Popen) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(process.args)} failed; its messages stand above")


def measured() -> dict:
    """Settings, and what the base and each LoRA do to every reward, to the judge's reading, and in path KL."""
    names = ["base", *SCALES]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        models = dict(zip(names, pool.map(measure, names), strict=True))
    settings = {"base": asdict(BaseTraining()), "alignment": asdict(Alignment()), "scorer": SCORER, "judge": JUDGE}
    return {"settings": settings, "scales": SCALES, "models": models}


def measure(name: str) -> dict:
    """What one model, `base` or a LoRA's name, reaches on the same prompts and noise as the others."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    policy = Policy(Alignment())
    if name != "base":
        load_lora(policy, name)
    images, prompts, kl = samples(policy, SAMPLES, seed=4)
    return {
        "n": len(images),
        "rewards": {of: _mean(reward(images, prompts)) for of, reward in toy_rewards().items()},
        "accuracy": accuracy(judge(), images, prompts),
        "path_kl": _mean(kl),
        "seconds": round(time.perf_counter() - started, 1),
    }


def load_lora(policy: Policy, name: str) -> None:
    """Put the studio's LoRA in the place of the policy's fresh one."""
    policy.unet.delete_adapters("default")
    policy.pipe.load_lora_weights(STUDIO / "loras" / f"{name}.safetensors")


def _mean(values: torch.Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "standard_error": (values.std() / len(values) ** 0.5).item()}


if __name__ == "__main__":
    main()
