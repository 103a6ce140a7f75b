"""Make the toy studio from its seeds: `python -m diffusion_blend.lab.toy.make` (about an hour on two cores).

Each part is skipped when its files are there already; delete a part's files to make it again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from ...trainers.model.lora_policy import LoraPolicy
from ...trainers.model.rollout import rollout
from ...trainers.seeding import stream
from ...trainers.settings.config import PRESETS
from ...trainers.settings.toml import tomllib
from . import STUDIO
from .data import random_prompts
from .rewards import JUDGE_WIDTH, toy_rewards
from .scorer import Classifier, accuracy, load_classifier, save_classifier, train_classifier
from .train_base import BaseTraining
from .training import toy_policy

RUN = STUDIO.parent / "run"  # what training leaves behind; not shipped
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads of a process under load slow one another down
SCORER = {"seed": 1, "width": 24}
JUDGE = {"seed": 2, "width": JUDGE_WIDTH}  # never a reward: it tells how good the samples are
# What one unit of each reward weighs. At 1 the LoRA of faithful ran away: KL 250 after 40 epochs, and no gain.
SCALES = {"calm": 1.0, "vivid": 1.0, "faithful": 0.5}
# Trained for one preference, calm against vivid: what blends of the two are held against.
ORACLES = {f"calm{100 * w:.0f}_vivid{100 - 100 * w:.0f}": (w, 1 - w) for w in (0.75, 0.5, 0.25)}
# The exact blend of calm and vivid as one LoRA, of the whole export's rank; 16 states per update.
DISTILLED, DISTILLED_WEIGHTS = "distilled_calm50_vivid50", "0.5, 0.5"
DISTILLATION = {
    "lora.rank": 16,
    "epochs": 96,
    "prompts_per_epoch": 8,
    "reuse": 6,
    "distil.steps": 2,
    "optimisation.images_per_pass": 8,
    "optimisation.learning_rate": 3e-4,
    "output.validate_every": 12,
    "output.validation_images": 16,
    "output.dtype": "float16",
}
STATISTICS = 96  # images of the base that give the rewards their zero and unit
SAMPLES = 256  # images per measurement


def main() -> None:
    """Everything that is not there yet, then `training.json` with the settings and what was measured."""
    torch.set_num_threads(1)
    make_base(RUN)
    make_classifier("scorer", SCORER)
    make_classifier("judge", JUDGE)
    make_statistics()
    make_loras()
    make_distilled()
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


@torch.no_grad()
def samples(policy: LoraPolicy, count: int, seed: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Images (count, 3, 32, 32), their prompts, and each image's path KL to the base (count,)."""
    generator = torch.Generator().manual_seed(seed)
    images, prompts, kls = [], [], []
    for first in range(0, count, 32):
        batch = random_prompts(min(32, count - first), generator)
        encoded = policy.encode(batch)
        noise = policy.noise([stream(seed, "sample", number) for number in range(first, first + len(batch))])
        path = rollout(policy.steps, noise, policy.predictor(encoded), policy.reference_predictor(encoded))
        images.append(policy.decode(path.latents))
        prompts += batch
        kls.append(path.kl.sum(0))
    return torch.cat(images), prompts, torch.cat(kls)


def make_statistics() -> None:
    """Mean and spread of each raw reward over samples of the base, and the spread of its surrogate."""
    path = STUDIO / "rewards.json"
    if path.exists():
        return
    images, prompts, _ = samples(toy_policy(), STATISTICS, seed=3)
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
    rewards = {name: f"reward.name=toy:{name}" for name in SCALES}
    rewards |= {name: f'reward.sum=["{w}*toy:calm", "{v}*toy:vivid"]' for name, (w, v) in ORACLES.items()}
    missing = [name for name in rewards if not (STUDIO / "loras" / f"{name}.safetensors").exists()]
    running = []
    for name in missing:
        settings = [rewards[name], f"output.title={name}", f"output.folder={RUN / name}"]
        options = [part for setting in settings for part in ("--set", setting)]
        running.append(
            subprocess.Popen([sys.executable, "-m", "diffusion_blend.lab", "train", "toy", *options], env=ENVIRONMENT)
        )
        if len(running) == 2:
            _finish(running.pop(0))
    for process in running:
        _finish(process)
    (STUDIO / "loras").mkdir(exist_ok=True)
    for name in missing:
        shutil.copy(RUN / name / f"{name}.safetensors", STUDIO / "loras")


def make_distilled() -> None:
    """Distil the blend of calm and vivid, and keep its distances to the exact blend next to training.json."""
    place, folder = STUDIO / "loras" / f"{DISTILLED}.safetensors", RUN / DISTILLED
    if place.exists():
        return
    settings = {"output.title": DISTILLED, "output.folder": folder, **DISTILLATION}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "diffusion_blend.lab", "distil", "toy", "--reward", "calm", "--reward", "vivid"]
    subprocess.run([*command, "--weights", DISTILLED_WEIGHTS, *options], env=ENVIRONMENT, check=True)
    shutil.copy(folder / place.name, place)
    shutil.copy(folder / f"{DISTILLED}.distances.json", STUDIO)


def _finish(process: subprocess.Popen) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(process.args)} failed; its messages stand above")


def measured() -> dict:
    """Settings, and what the base and each LoRA do to every reward, to the judge's reading, and in path KL."""
    names = ["base", *SCALES]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        models = dict(zip(names, pool.map(measure, names), strict=True))
    alignment = tomllib.loads((PRESETS / "toy.toml").read_text(encoding="utf-8"))
    settings = {"base": asdict(BaseTraining()), "alignment": alignment, "scorer": SCORER, "judge": JUDGE}
    settings["distillation"] = DISTILLATION
    return {"settings": settings, "scales": SCALES, "models": models}


def measure(name: str) -> dict:
    """What one model, `base` or a LoRA's name, reaches on the same prompts and noise as the others."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    policy = toy_policy(None if name == "base" else STUDIO / "loras" / f"{name}.safetensors")
    images, prompts, kl = samples(policy, SAMPLES, seed=4)
    return {
        "n": len(images),
        "rewards": {of: _mean(reward(images, prompts)) for of, reward in toy_rewards().items()},
        "accuracy": accuracy(judge(), images, prompts),
        "path_kl": _mean(kl),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _mean(values: torch.Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "standard_error": (values.std() / len(values) ** 0.5).item()}


if __name__ == "__main__":
    main()
