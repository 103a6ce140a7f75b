"""One LoRA distilled from a blend, per setting of its weights, and its distance to the exact blend's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline

from ...blend_core import Blend, BlendError, read_adapter
from ...blend_core.blend import parse_weights
from ...pipelines import BlendEvaluation, Sampling, generate, load_base, match
from ...trainers.data.prompts import held_out, read_prompts
from ...trainers.model.distilled import Parts
from ...trainers.settings.config import Config
from ...trainers.train import train
from ..files import write_json
from ..options import chosen_device, dtype_of, read_rewards
from ..tables import print_rows
from ..toy.training import resolved
from .export import save_export

STEPS = (20, 50)
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class OneFile:
    """The blend of one file. label: what tells the file from the others of its run; empty where there is one alone."""

    rewards: Mapping[str, str]
    weights: tuple[float, ...]
    alignment: float
    label: str = ""

    @classmethod
    def all_of(
        cls, config: Config, rewards: Sequence[str], weights: Sequence[str], alignment: float | None
    ) -> list[OneFile]:
        """One per text of weights; where none came, one of the settings' own. The same of rewards and alignment.

        Raises BlendError where there is no reward LoRA, and for what is no weight.
        """
        blend = config.distil
        named = read_rewards(rewards or blend.loras, config.base.path)
        if not named:
            raise BlendError("no reward LoRA came. Give --reward NAME=PATH, once for each.")
        alignment = blend.alignment if alignment is None else alignment
        if not weights:
            return [cls(named, blend.weights, alignment)]
        files = []
        for text in weights:
            numbers = parse_weights(text, len(named))
            label = "_".join(f"{name}{number:g}" for name, number in zip(named, numbers, strict=True))
            files.append(cls(named, numbers, alignment, label if len(weights) > 1 else ""))
        return files

    def applied(self, config: Config) -> Config:
        """The settings of the run that makes this file."""
        loras = tuple(f"{name}={path}" for name, path in self.rewards.items())
        output = config.output
        title = "_".join(part for part in (output.title or "distilled", self.label) if part)
        folder = str(Path(output.folder) / self.label) if self.label else output.folder
        return replace(
            config,
            distil=replace(config.distil, loras=loras, weights=self.weights, alignment=self.alignment),
            output=replace(output, title=title, folder=folder),
        )


def distil(config: Config, files: Sequence[OneFile]) -> None:
    """Train the file of every setting, and say how far it is from the exact blend. Raises BlendError, as `train`."""
    for one in files:
        settings, _ = resolved(one.applied(config))
        path = train(settings)
        if PartialState().is_main_process:
            print(path)
            report(settings, path)


def report(config: Config, file: Path) -> None:
    """Print the distances of export and result, and write them next to the file."""
    rows = distances(config, file)
    write_json(file.with_suffix(".distances.json"), rows)
    print_rows([["RMSE of pixels to the exact blend, eta 0", *(f"{steps} steps" for steps in STEPS), "images"]] + [
        [row["file"], *(f"{row['distance'][str(steps)]:.5f}" for steps in STEPS), str(row["images"])] for row in rows
    ])  # fmt: skip


@torch.no_grad()
def distances(config: Config, file: Path) -> list[dict]:
    """Of the export, of the export cut to the file's rank, and of the file: RMSE to the exact blend by steps.

    On the validation's prompts, none of which was trained on, with the noise of equal seeds.
    """
    parts = Parts.of(config)
    pipe = load_base(config.base.path, config.base.config or None, dtype_of(PRECISIONS[config.optimisation.precision]))
    pipe = pipe.to(chosen_device("auto"))
    chosen = _prompts(config)
    factors, _ = match(pipe, parts.adapters)
    exact = BlendEvaluation.of("exact", parts.blend, factors)
    images = {steps: _images(pipe, exact, config, chosen, steps) for steps in STEPS}
    rows = []
    with TemporaryDirectory() as folder:
        files = {"export, all ranks": Path(folder) / "all.safetensors"}
        save_export(pipe, parts.blend, parts.adapters, factors, 0, files["export, all ranks"])
        if max(read_adapter(files["export, all ranks"]).ranks) > config.lora.rank:
            cut = files[f"export, rank {config.lora.rank}"] = Path(folder) / "cut.safetensors"
            save_export(pipe, parts.blend, parts.adapters, factors, config.lora.rank, cut)
        files[f"distilled, rank {config.lora.rank}"] = file
        for name, place in files.items():
            one = BlendEvaluation.of("exact", Blend((name,), (1.0,)), match(pipe, [read_adapter(place)])[0])
            distance = {
                str(steps): _rmse(_images(pipe, one, config, chosen, steps), images[steps]) for steps in STEPS
            }
            rows.append({"file": name, "distance": distance, "images": len(chosen)})
    return rows


def _prompts(config: Config) -> list[str]:
    """One per image of the report."""
    file = config.prompts.validation_file
    prompts = read_prompts(file) if file else held_out(read_prompts(config.prompts.file))[1]
    return [prompts[i % len(prompts)] for i in range(config.output.validation_images)]


def _images(
    pipe: DiffusionPipeline, evaluation: BlendEvaluation, config: Config, prompts: Sequence[str], steps: int
) -> torch.Tensor:
    sampling, size = Sampling(steps, 0.0, config.sampling.cfg, config.sampling.size or None), 8
    made = []
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        made.append(generate(pipe, evaluation, batch, range(first, first + len(batch)), sampling))
    return torch.cat(made)


def _rmse(images: torch.Tensor, others: torch.Tensor) -> float:
    return (images - others).double().square().mean().sqrt().item()
