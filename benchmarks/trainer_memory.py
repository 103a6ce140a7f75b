"""Peak memory of one dpok update: the LoRA switched off as the reference, against a second copy of the network.

    python benchmarks/trainer_memory.py

Each way runs in a process of its own, on a UNet of Stable Diffusion 1.5's shape with random weights.
"""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
import types

SIDE = 32  # latent pixels


def measure(way: str) -> None:
    """Print the process's peak, in MB, before the update and after it."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusion_blend.trainers.model.families import FAMILIES
    from diffusion_blend.trainers.model.lora_policy import LoraPolicy
    from diffusion_blend.trainers.settings.config import read_config

    torch.set_num_threads(1)
    network = UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=768, block_out_channels=(192, 384, 768, 768))
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    base = types.SimpleNamespace(
        network=network.requires_grad_(False).eval(),
        family=FAMILIES["StableDiffusionPipeline"],
        steps=lambda config: FAMILIES["StableDiffusionPipeline"].steps(scheduler, config.sampling, SIDE**2),
        call=lambda network, x, t, c: network(x, int(t), encoder_hidden_states=c["text"]).sample,
    )
    config = read_config(sampling__steps=50, optimisation__gradient_checkpointing=True)
    policy = LoraPolicy(base, config)
    encoded = types.SimpleNamespace(guided={"text": torch.randn(2, 77, 768)})
    reference = policy.reference_predictor(encoded)
    if way == "copy":
        second = copy.deepcopy(network)
        second.disable_adapters()
        other = copy.copy(policy)
        other.network = second
        reference = other.predictor(encoded)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    x = torch.randn(1, 4, SIDE, SIDE)
    with torch.no_grad():
        base_prediction = reference(x, 10)
    prediction = policy.predictor(encoded)(x, 10)
    policy.steps[10].kl(prediction, base_prediction).sum().backward()
    weights = sum(p.numel() for p in network.parameters()) * 4 / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{way}: network {weights:.0f} MB, peak {peak:.0f} MB ({before:.0f} MB before the update)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for way in ("switched off", "copy"):
            subprocess.run([sys.executable, __file__, way], check=True)
