"""Preference pairs from a base model and a reward: two samples of a prompt, the better one named by the reward."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tqdm import tqdm

from ..loop.log import save_grid
from ..model.base import open_base
from ..model.lora_policy import LoraPolicy
from ..model.rollout import rollout
from ..rewards import Rewards
from ..seeding import stream
from ..settings.config import Config
from .prompts import read_prompts, shuffled


@torch.no_grad()
def make_pairs(config: Config, rewards: Rewards, folder: Path, count: int, candidates: int = 4) -> Path:
    """Sample `candidates` images of each of `count` prompts, keep the best and the worst; folder/pairs.jsonl.

    The base model samples, as the settings say: a fresh LoRA changes nothing.
    """
    policy = LoraPolicy(open_base(config), config)
    prompts = read_prompts(config.prompts.file)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, item in enumerate(tqdm(shuffled(config.seed, 0, count, len(prompts)), desc="pairs", mininterval=2)):
        texts = [prompts[item]] * candidates
        encoded = policy.encode(texts)
        generators = [stream(config.seed, "pair", number, i) for i in range(candidates)]
        path = rollout(policy.steps, policy.noise(generators), policy.predictor(encoded))
        images = policy.decode(path.latents)
        scores = rewards.trained(images, texts)
        names = {"better": f"{number:05d}_better.png", "worse": f"{number:05d}_worse.png"}
        for side, place in (("better", scores.argmax()), ("worse", scores.argmin())):
            save_grid(images[int(place)][None], folder / names[side], columns=1)
        lines.append({"prompt": prompts[item], **names})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"
