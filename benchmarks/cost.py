"""What a blend costs, beside the plain sampler, ComfyUI's own LoRA hooks, and m whole networks. Prints ratios.

Run by `make bench` with a ComfyUI's own Python, on an SD 1.5 network of real size with random weights. Modes are
measured in turn, round after round in one process, each right after a plain run; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser()
RANK = 8
LINE = "{mode:14} m={m}  {ratio:5.2f} x plain ({lowest:.2f} to {highest:.2f})  memory +{memory_ratio:.2%}"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what reward LoRAs of SD 1.5 usually adapt


def load_host():
    """ComfyUI's modules on its path, on the GPU where there is one, and our pack as ComfyUI loads it."""
    sys.path.insert(0, str(COMFYUI))
    sys.argv = sys.argv[:1]
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        "blend_pack", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["blend_pack"] = pack
    spec.loader.exec_module(pack)


@dataclass
class Bench:
    """One network and what every mode samples with."""

    model: object
    conditioning: tuple
    latent: dict
    steps: int
    cfg: float
    make_copy: Callable

    def sample(self, model, positive=None, negative=None) -> float:
        """Seconds of one run of the stock KSampler."""
        import torch

        from nodes import common_ksampler

        positive, negative = positive or self.conditioning[0], negative or self.conditioning[1]
        with torch.inference_mode():
            synchronise()
            started = time.perf_counter()
            common_ksampler(
                model, 1, self.steps, self.cfg, "euler", "normal", positive, negative, self.latent, denoise=1.0
            )
            synchronise()
        return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build(settings) -> Bench:
    """An SD 1.5 network with random weights, in the size asked for."""
    import comfy.ops
    import comfy.sd
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    levels = settings.levels
    network = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * levels,
        channel_mult=[1, 2, 4, 4][:levels], num_heads=8, use_spatial_transformer=True, context_dim=768,
        transformer_depth=([1] * 6 + [0] * 2)[: 2 * levels], transformer_depth_middle=1, legacy=False,
        transformer_depth_output=([1] * 9 + [0] * 3)[: 3 * levels], use_checkpoint=False, dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if value.dim() > 1:
            state[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            state[name] = torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
    del network
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32

    def make_copy():
        return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": dtype})

    texts = tuple([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
    latent = {"samples": torch.zeros(1, 4, settings.latent, settings.latent)}
    return Bench(make_copy(), texts, latent, settings.steps, settings.cfg, make_copy)


def random_lora(model, seed: int) -> dict:
    """A rank-8 LoRA on all attention projections, in ComfyUI's own spelling."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in model.model.named_modules():
        if name.startswith("diffusion_model.") and name.endswith(ATTENTION):
            out_features, in_features = module.weight.shape
            state[f"{name}.lora_down.weight"] = torch.randn(RANK, in_features, generator=generator) / in_features**0.5
            state[f"{name}.lora_up.weight"] = torch.randn(out_features, RANK, generator=generator) * 0.05
    return {name: value.half() for name, value in state.items()}


def blended(bench: Bench, loras: list[dict], evaluation: str, execution: str):
    """Our way: one network, low-rank factors. Returns a runner and the factors' share of the base's bytes."""
    import tempfile

    from blend_pack.blend_core import ESTIMATORS, read_adapter
    from blend_pack.nodes.patching import KEY, apply_blend
    from blend_pack.nodes.sockets import LoRABlend, RewardLoRA
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        adapters = []
        for i, state in enumerate(loras):
            save_file(state, f"{folder}/reward{i}.safetensors")
            adapters.append(RewardLoRA(f"reward{i}", read_adapter(f"{folder}/reward{i}.safetensors")))
    blend = LoRABlend.of(tuple(adapters), (1 / len(loras),) * len(loras))
    model = apply_blend(bench.model, blend, ESTIMATORS[evaluation], execution, seed=1).model
    bank = model.get_additional_models_with_key(KEY)[0].model
    return (lambda: bench.sample(model)), lambda: held_bytes(bank) / bench.model.model_size()


def held_bytes(bank) -> int:
    """Bytes of the factors, casts to the computation's dtype included."""
    cast = [tensor for slot in bank.slots for pair in slot._cast.values() for tensor in pair]
    return bank.nbytes + sum(tensor.numel() * tensor.element_size() for tensor in cast)


def hooked(bench: Bench, loras: list[dict]):
    """ComfyUI's way to the same average: a LoRA hook on a copy of each conditioning, weights swapped in between."""
    import comfy.hooks

    hooks = [comfy.hooks.create_hook_lora(lora=state, strength_model=1.0, strength_clip=0.0) for state in loras]
    conditionings = []
    for text in bench.conditioning:
        parts = []
        for hook in hooks:
            part = comfy.hooks.set_hooks_for_conditioning(text, hook)
            parts += [[t, {**options, "strength": 1 / len(loras)}] for t, options in part]
        conditionings.append(parts)
    model = bench.model.clone()
    held = []

    def watch(executor, *args, **kwargs):
        cached = [t for group in model.cached_hook_patches.values() for t, *_ in group.values()]
        backup = [entry[0] for entry in model.hook_backup.values()]
        held.append(sum(t.numel() * t.element_size() for t in cached + backup))
        return executor(*args, **kwargs)

    import comfy.patcher_extension

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "watch", watch)
    return (lambda: bench.sample(model, *conditionings)), lambda: max(held) / bench.model.model_size()


def copied(bench: Bench, loras: list[dict]):
    """The paper's code: m whole networks with merged weights, one call of each per step."""
    import comfy.sd

    models = [comfy.sd.load_lora_for_models(bench.make_copy(), None, state, 1.0, 0.0)[0] for state in loras]
    import comfy.model_management

    comfy.model_management.load_models_gpu(models)

    def average(apply, inputs):
        calls = [model.model.apply_model(inputs["input"], inputs["timestep"], **_own(inputs["c"])) for model in models]
        return sum(calls) / len(calls)

    leader = models[0].clone()
    leader.set_model_unet_function_wrapper(average)
    return (lambda: bench.sample(leader)), lambda: float(len(models) - 1)


def _own(conditioning: dict) -> dict:
    return {**conditioning, "transformer_options": dict(conditioning["transformer_options"])}


def measure(bench: Bench, modes: dict, rounds: int) -> dict[str, list[float]]:
    """Ratios to the plain sampler, one per round and mode."""
    from tqdm import tqdm

    for run, _ in modes.values():
        run()  # first calls load weights and fill caches
    ratios: dict[str, list[float]] = {name: [] for name in modes}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, (run, _) in modes.items():
            plain = bench.sample(bench.model)  # beside every mode: what else the machine does changes by the second
            ratios[name].append(run() / plain)
    return ratios


def main() -> None:
    """Measure, print the table and write benchmarks/out/cost.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, default=4, help="of SD 1.5's four resolution levels (default: all)")
    parser.add_argument("--latent", type=int, default=16, help="latent pixels of each side")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fewest", type=int, default=2, help="smallest number of rewards")
    parser.add_argument("--most", type=int, default=4, help="largest number of rewards")
    parser.add_argument("--copies", type=int, default=2, help="largest number of whole networks to hold")
    settings = parser.parse_args()
    load_host()
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    rows = []
    bench = build(settings)
    loras = [random_lora(bench.model, seed) for seed in range(settings.most)]
    for m in range(settings.fewest, settings.most + 1):
        modes = {
            "exact": blended(bench, loras[:m], "exact", "sequential"),
            "exact batched": blended(bench, loras[:m], "exact", "batched"),
            "stratified": blended(bench, loras[:m], "stratified", "sequential"),
            "sampled": blended(bench, loras[:m], "sampled", "sequential"),
            "hooks": hooked(bench, loras[:m]),
        }
        if m <= settings.copies:
            modes["copies"] = copied(bench, loras[:m])
        for name, values in measure(bench, modes, settings.rounds).items():
            row = {"mode": name, "m": m, "ratio": statistics.median(values), "lowest": min(values)}
            rows.append(row | {"highest": max(values), "memory_ratio": modes[name][1]()})
            print(LINE.format(**rows[-1]))
        del modes
        write(rows, bench, settings)  # after every m, so that a stopped run keeps what it measured


def write(rows: list[dict], bench: Bench, settings) -> None:
    """benchmarks/out/cost.json: the rows, and the machine, versions and settings they were measured with."""
    import comfyui_version
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu}
    facts = {"machine": machine, "torch": torch.__version__, "comfyui": comfyui_version.__version__}
    facts |= {"settings": vars(settings), "base_bytes": bench.model.model_size()}
    out = REPOSITORY / "benchmarks" / "out"
    out.mkdir(exist_ok=True)
    (out / "cost.json").write_text(json.dumps({"rows": rows, **facts}, indent=1))


if __name__ == "__main__":
    main()
