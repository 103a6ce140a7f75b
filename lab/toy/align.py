"""Reward LoRAs for the toy model: on-policy reward gradients with the exact KL to the base.

Per iteration: roll out prompts with the present LoRA (no gradient); at a few of the stored states predict x0 with
gradient, decode it, and climb E[reward] - kl_weight * sum over steps of KL(step || base's step).
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from tqdm import trange

from .data import caption, random_labels, words_of
from .export import save_lora
from .model import STUDIO, load_base
from .rewards import ToyReward, toy_rewards
from .rollout import guided, rollout, schedule

TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut"),
]


@dataclass(frozen=True)
class Alignment:
    """Settings of one reward LoRA's training."""

    seed: int = 11
    iterations: int = 25
    prompts: int = 16  # trajectories per iteration
    steps: int = 20  # denoising steps of a trajectory
    eta: float = 1.0
    cfg: float = 2.0
    updates: int = 4  # optimiser steps per iteration, each on half of its trajectories
    trained_steps: int = 5  # states of a trajectory that get a gradient in an update
    first_trained: int = 5  # earlier states say too little about x0
    kl_weight: float = 0.003  # in units of the normalised reward
    rank: int = 8
    learning_rate: float = 1e-3


class Policy:
    """The toy model with one fresh LoRA, and its guided predictions with the LoRA on or off."""

    def __init__(self, settings: Alignment):
        torch.manual_seed(settings.seed)
        self.pipe = load_base()
        self.unet = self.pipe.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=TARGETS))
        self.cfg = settings.cfg
        self.levels = schedule(self.pipe.scheduler, settings.steps, settings.eta)
        self.empty = self.encode([""])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Text states (batch, tokens, width)."""
        tokens = self.pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        return self.pipe.text_encoder(tokens).last_hidden_state

    def predictor(self, prompts: list[str]):
        """predict(x, timestep) for these prompts."""
        return guided(self.unet, self.encode(prompts), self.empty.expand(len(prompts), -1, -1), self.cfg)

    def reference_predictor(self, prompts: list[str]):
        """The base model's predict(x, timestep) for these prompts, without gradient."""
        predict = self.predictor(prompts)

        def predict_base(x: Tensor, timestep: int) -> Tensor:
            with self.reference():
                return predict(x, timestep)

        return predict_base

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents to start from, (count, channels, h, w)."""
        config = self.unet.config
        return torch.randn(count, config.in_channels, config.sample_size, config.sample_size, generator=generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (batch, 3, 32, 32), about [0, 1]."""
        return self.pipe.vae.decode(latents).sample / 2 + 0.5

    @contextmanager
    def reference(self):
        """The base model: the LoRA switched off, and on again whatever happens."""
        self.unet.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            self.unet.enable_adapters()

    def parameters(self) -> list[Tensor]:
        """The LoRA's weights."""
        return [p for p in self.unet.parameters() if p.requires_grad]


def random_prompts(count: int, generator: torch.Generator) -> list[str]:
    """Full captions of random pictures."""
    labels = random_labels(count, generator)
    return [caption(words_of(labels, i)) for i in range(count)]


def surrogate_loss(policy: Policy, reward: ToyReward, settings: Alignment, states, k: int, prompts, predict) -> tuple:
    """(score of the predicted x0 or 0 for an early step, KL of step k), each a mean over the states before step k."""
    level, x = policy.levels[k], states[k]
    velocity = predict(x, level.timestep)
    with policy.reference():
        reference = predict(x, level.timestep)
    kl = level.kl(x, velocity, reference).mean()
    if k < settings.first_trained:
        return torch.zeros(()), kl
    images = policy.decode(level.x0(x, velocity))
    return (reward.surrogate(images, prompts) / reward.std * reward.scale).mean(), kl


def trained_steps(settings: Alignment, generator: torch.Generator) -> list[tuple[int, float]]:
    """(step, weight) pairs whose weighted sum of KLs has the path's KL as its mean.

    The last step but one holds most of a path's KL (its sigma is the smallest that still follows a prediction), so it
    is always taken; the others take turns. Left to chance it would make the gradient a row of spikes.
    """
    always = settings.steps - 2
    others = [k for k in range(settings.steps) if k != always]
    count = settings.trained_steps - 1
    chosen = torch.randperm(len(others), generator=generator)[:count].tolist()
    return [(always, 1.0), *((others[i], len(others) / count) for i in chosen)]


def align(reward: ToyReward, surrogate_std: float, settings: Alignment) -> tuple[Policy, list[dict]]:
    """Train one LoRA; returns the policy and a log of reward and path KL per iteration."""
    reward = ToyReward(reward.name, reward.raw, _rescaled(reward, surrogate_std), reward.mean, reward.std, reward.scale)
    policy = Policy(settings)
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam(policy.parameters(), settings.learning_rate)
    log = []
    progress = trange(settings.iterations, desc=reward.name, mininterval=5)
    for iteration in progress:
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1, 2 * (1 - iteration / settings.iterations))
        prompts = random_prompts(settings.prompts, generator)
        noise = policy.noise(settings.prompts, generator)
        states = rollout(policy.predictor(prompts), policy.levels, noise, generator)
        kls = [
            _update(policy, reward, settings, states, prompts, optimiser, generator) for _ in range(settings.updates)
        ]
        with torch.no_grad():
            score = reward(policy.decode(states[-1]), prompts).mean().item()
        log.append({"iteration": iteration, "reward": score, "path_kl": sum(kls) / len(kls)})
        progress.set_postfix(reward=f"{score:.2f}", kl=f"{log[-1]['path_kl']:.1f}")
    return policy, log


def _update(policy, reward, settings, states, prompts, optimiser, generator) -> float:
    """One optimiser step over a few states of half the trajectories; returns the estimate of the path's KL."""
    half = torch.randperm(len(prompts), generator=generator)[: len(prompts) // 2]
    states, prompts = [x[half] for x in states], [prompts[i] for i in half]
    predict = policy.predictor(prompts)
    path_kl = 0.0
    for k, weight in trained_steps(settings, generator):
        score, kl = surrogate_loss(policy, reward, settings, states, k, prompts, predict)
        (settings.kl_weight * weight * kl - score / settings.trained_steps).backward()
        path_kl += weight * kl.item()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return path_kl


def _rescaled(reward: ToyReward, surrogate_std: float):
    """The surrogate in units of the exact score's spread."""
    return lambda images, prompts: reward.surrogate(images, prompts) * (reward.std / surrogate_std)


def main() -> None:
    """Train and save one of the studio's LoRAs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reward", choices=["calm", "vivid", "faithful"])
    parser.add_argument("--iterations", type=int, default=Alignment.iterations)
    parser.add_argument("--kl-weight", type=float, default=Alignment.kl_weight)
    parser.add_argument("--out", type=Path, default=STUDIO / "loras")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Alignment(iterations=arguments.iterations, kl_weight=arguments.kl_weight)
    surrogates = json.loads((STUDIO / "surrogates.json").read_text())
    reward = toy_rewards()[arguments.reward]
    policy, log = align(reward, surrogates[reward.name], settings)
    facts = {"reward": reward, "settings": asdict(settings), "log": log}
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_lora(get_peft_model_state_dict(policy.unet), arguments.out / f"{reward.name}.safetensors", **facts)


if __name__ == "__main__":
    main()
