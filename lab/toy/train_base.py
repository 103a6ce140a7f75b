"""Train the toy base model: v-prediction on latents of drawn pictures, text encoder and network together.

    torchrun --standalone --nproc_per_node=2 -m diffusion_blend.lab.toy.train_base RUN_FOLDER

Processes average their gradients, each on its own share of a step's batch. Two processes of one thread are faster on
two cores than one process of two threads. A run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data import caption, draw, random_labels, words_of
from .model import build_scheduler, build_text_encoder, build_tokenizer, build_unet, fit_autoencoder, save_base


@dataclass(frozen=True)
class BaseTraining:
    """Settings of the base model's training."""

    seed: int = 7
    pictures: int = 36_000  # drawn once, encoded once
    steps: int = 6_000  # optimiser steps
    batch: int = 40  # pictures per process and step
    learning_rate: float = 1.5e-3  # cosine to 2% of it
    warm_up: int = 100  # steps
    dropped_captions: float = 0.1  # share of empty captions, for guidance
    ema: float = 0.998
    checkpoint_every: int = 250  # steps


class Data:
    """Encoded pictures and their captions' tokens, full and shortened."""

    def __init__(self, settings: BaseTraining):
        generator = torch.Generator().manual_seed(settings.seed)
        self.labels = random_labels(settings.pictures, generator)
        images = torch.cat([draw(part, generator) for part in _parts(self.labels, 2000)]) * 2 - 1
        self.tokenizer = build_tokenizer()
        self.autoencoder = fit_autoencoder(images[:8000], generator)
        with torch.no_grad():
            self.latents = torch.cat([self.autoencoder.encode(part).latent_dist.mean for part in images.split(2000)])
        self.tokens = self._tokens(settings.pictures)

    def _tokens(self, count: int) -> Tensor:
        """(4, count, length): without caption, in full, without texture, subject only."""
        words = [words_of(self.labels, i) for i in range(count)]
        texts = [
            [""] * count,
            [caption(w) for w in words],
            [caption(w, texture=False) for w in words],
            [caption(w, background=False) for w in words],
        ]
        encode = lambda batch: self.tokenizer(batch, padding="max_length", return_tensors="pt").input_ids  # noqa: E731
        return torch.stack([encode(batch) for batch in texts])

    def batch(self, settings: BaseTraining, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (batch, 16, 8, 8) and tokens (batch, length) of random pictures, captions shortened at random."""
        index = torch.randint(len(self.latents), (settings.batch,), generator=generator)
        dropped = settings.dropped_captions
        shares = torch.tensor([dropped, 0.7 * (1 - dropped), 0.15 * (1 - dropped), 0.15 * (1 - dropped)])
        kind = torch.multinomial(shares, settings.batch, replacement=True, generator=generator)
        return self.latents[index], self.tokens[kind, index]


def _parts(labels: dict[str, Tensor], size: int):
    splits = {name: values.split(size) for name, values in labels.items()}
    return ({name: splits[name][i] for name in splits} for i in range(len(splits["shape"])))


def training_loss(model: nn.ModuleDict, latents: Tensor, tokens: Tensor, scheduler, generator) -> Tensor:
    """Mean squared error of the v-prediction at uniform timesteps."""
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    text = model["text"](tokens).last_hidden_state
    prediction = model["unet"](noisy.contiguous(memory_format=torch.channels_last), timesteps, text).sample
    return F.mse_loss(prediction, scheduler.get_velocity(latents, noise, timesteps))


def learning_rate(settings: BaseTraining, step: int) -> float:
    """Linear warm-up, then a cosine to 2%."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    progress = (step - settings.warm_up) / (settings.steps - settings.warm_up)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(settings: BaseTraining, folder: Path) -> None:
    """Train, with checkpoints in `folder`; the finished model is written to `folder/base`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    data = Data(settings)
    torch.manual_seed(settings.seed)
    model = nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(data.tokenizer)})
    model["unet"].to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.01, fused=True)
    first = _resume(folder, model, average, optimiser)
    scheduler = build_scheduler()
    for step in tqdm(
        range(first, settings.steps), initial=first, total=settings.steps, disable=rank > 0, mininterval=5
    ):
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * world + rank)
        loss = training_loss(model, *data.batch(settings, generator), scheduler, generator)
        loss.backward()
        _average_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step)
        optimiser.step()
        optimiser.zero_grad()
        _follow(average, model, min(settings.ema, (1 + step) / (10 + step)))
        if rank == 0 and (step + 1) % settings.checkpoint_every == 0:
            tqdm.write(f"step {step + 1}: loss {loss.item():.4f}")
            _checkpoint(folder, model, average, optimiser, step + 1)
    if rank == 0:
        save_base(average["unet"], average["text"], data.tokenizer, data.autoencoder, folder / "base")


def _average_gradients(model: nn.Module, world: int) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _checkpoint(folder: Path, model, average, optimiser, step: int) -> None:
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    partial = folder / "checkpoint.partial"
    torch.save({**state, "step": step}, partial)
    partial.replace(folder / "checkpoint.pt")


def _resume(folder: Path, model, average, optimiser) -> int:
    if not (folder / "checkpoint.pt").exists():
        return 0
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def main() -> None:
    """Entry point of each process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where checkpoints and the finished model go")
    parser.add_argument("--steps", type=int, default=BaseTraining.steps, help="optimiser steps (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo")
    train(BaseTraining(steps=arguments.steps), arguments.folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
