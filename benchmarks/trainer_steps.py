"""Images per second and peak memory of an epoch of dpok and of draft, on a network of Stable Diffusion 1.5's shape.

    python benchmarks/trainer_steps.py           512 pixels, bfloat16, gradient checkpointing; on a GPU, if there is one
    python benchmarks/trainer_steps.py --small   64 pixels on a narrow network: a rehearsal

Weights are random, the text encoder and the autoencoder are tiny, the reward is a formula: what is measured is the
trainer and the network. One epoch each, after the trial pass that the trainer makes anyway.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = "diffusion_blend"


def load_pack() -> None:
    """The repository as the package diffusion_blend, where it is not installed."""
    if importlib.util.find_spec(PACK) is None:
        init, place = REPOSITORY / "__init__.py", [str(REPOSITORY)]
        spec = importlib.util.spec_from_file_location(PACK, init, submodule_search_locations=place)
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACK])
    sys.path.insert(0, str(REPOSITORY / "tests"))


def pipeline(small: bool):
    """A random Stable Diffusion 1.5 with 768-wide prompts from a tiny text encoder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    from trainers import worlds

    widths = (32, 64, 64, 64) if small else (320, 640, 1280, 1280)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        network = UNet2DConditionModel(
            sample_size=8 if small else 64, cross_attention_dim=768, block_out_channels=widths, attention_head_dim=8
        )
        autoencoder = AutoencoderKL(
            block_out_channels=(16, 16, 16, 16), latent_channels=4, norm_num_groups=8, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    return StableDiffusionPipeline(
        vae=autoencoder, text_encoder=worlds.text_encoder(width=768), tokenizer=worlds.tokenizer(),
        unet=network.eval().to(torch.bfloat16), scheduler=worlds.scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def main() -> None:
    """Train an epoch of each, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    load_pack()
    from diffusion_blend.trainers.settings.config import read_config
    from diffusion_blend.trainers.train import train

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pipeline(small).save_pretrained(folder / "base")
        (folder / "prompts.txt").write_text("a red circle\na blue square\n")
        shared = {
            "kl_weight": 0.01,
            "epochs": 1,
            "prompts_per_epoch": 2,
            "images_per_prompt": 4,
            "base__path": str(folder / "base"),
            "reward__name": "brightness",
            "prompts__file": str(folder / "prompts.txt"),
            "sampling__steps": 4 if small else 20,
            "optimisation__precision": "bf16",
            "optimisation__gradient_checkpointing": True,
            "optimisation__images_per_pass": 4,
            "output__validate_every": 0,
            "output__checkpoint_every": 0,
        }
        runs = {"dpok": {"policy_gradient__trained_steps": 2 if small else 10}, "draft": {"draft__steps": 2}}
        for algorithm, settings in runs.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            train(read_config(algorithm=algorithm, output__folder=str(folder / algorithm), **shared, **settings))
            figures = json.loads((folder / algorithm / "log.jsonl").read_text().splitlines()[-1])
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
            rate = figures["images_per_second"]
            print(f"-- {algorithm}: {rate:.3f} images per second, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
