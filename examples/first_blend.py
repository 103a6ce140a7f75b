"""A first blend with diffusers: one prompt and seed, from the first reward to the second, as one picture.

As it stands it runs on the toy studio that ships with the repository. For real weights change MODEL: diffusers brings
the base model, and `diffusion-blend fetch NAME --to loras` every LoRA.
"""

import torch
from diffusion_blend.blend_core import Blend
from diffusion_blend.lab.toy.model import STUDIO
from diffusion_blend.pipelines import BlendEvaluation, Sampling, generate, load_base, load_factors
from PIL import Image

MODEL = "toy"  # or sdxl, sd15

MODELS = {  # the base model, two reward LoRAs, a prompt, and how to sample
    "toy": (STUDIO / "base", {name: STUDIO / "loras" / f"{name}.safetensors" for name in ("calm", "vivid")},
            "a green circle on a striped white background", Sampling(steps=20, eta=1.0, cfg=2.0)),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",  # fetch spo-sdxl, fetch dpo-sdxl
             {"beautiful": "loras/spo_sdxl_10ep_4k-data_lora_diffusers.safetensors",
              "preferred": "loras/sdxl-DPO-LoRA/pytorch_lora_weights.safetensors"},
             "a red fox in a snowy forest, morning light", Sampling(steps=30, cfg=7.0)),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5",  # fetch spo-sd15, fetch dpo-sd15
             {"beautiful": "loras/spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
              "preferred": "loras/sd_1_5_dpo_lora_v1-128dim.safetensors"},
             "a red fox in a snowy forest, morning light", Sampling(steps=30, cfg=7.5)),
}  # fmt: skip

base, loras, prompt, sampling = MODELS[MODEL]
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = load_base(str(base), dtype=torch.float16 if device == "cuda" and MODEL != "toy" else torch.float32).to(device)
factors, reports = load_factors(pipe, list(loras.values()))
print(*reports, sep="\n")

images = []
for weight in (1.0, 0.5, 0.0):  # of the first reward
    blend = Blend(tuple(loras), (weight, 1 - weight), alignment=1.0)
    evaluation = BlendEvaluation.of("exact", blend, factors)
    images.append(generate(pipe, evaluation, [prompt], seeds=[1], sampling=sampling)[0])
row = torch.cat(images, dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
Image.fromarray(row).save("first_blend.png")
print("first_blend.png: " + ", ".join(f"{weight:.0%} {next(iter(loras))}" for weight in (1.0, 0.5, 0.0)))
