"""The ways to sample a blend that are measured: ours, ComfyUI's LoRA hooks, and m whole networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import comfy.hooks
import comfy.patcher_extension
import comfy.sd
from safetensors.torch import save_file
from torch import Tensor

from ...blend_core import EVALUATIONS, read_adapter
from ...blend_core.estimators import Estimator, budget
from ...blend_core.network import low_rank
from ...nodes.host.apply import KEY, apply_blend
from ...nodes.types import LoRABlend, RewardLoRA
from .floors import Passes, scheduled
from .networks import Network, SamplerSettings

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mode:
    """One way to sample.

    run: makes one image's latents.  held, passes: after a run, the bytes it keeps above the base, and its passes.
    low_rank: whether it computes with factors, and not with weights they were added to.
    """

    run: Callable[[], Tensor]
    held: Callable[[], int]
    passes: Callable[[], tuple[Passes, ...]]
    low_rank: bool = True


def plain(network: Network, sampling: SamplerSettings) -> Mode:
    """The base, as without any LoRA."""
    return Mode(lambda: network.sample(sampling), lambda: 0, lambda: (Passes(sampling.steps),), low_rank=False)


def blended(
    evaluation: str, execution: str, estimator: Estimator | None = None
) -> Callable[[Network, SamplerSettings, Sequence[State]], Mode]:
    """Our way: one network, low-rank factors. estimator: by default the evaluation's."""

    def mode(network: Network, sampling: SamplerSettings, loras: Sequence[State]) -> Mode:
        chosen = estimator or EVALUATIONS[evaluation]
        applied = apply_blend(network.model, _even_blend(loras), chosen, execution, seed=1)
        (bank,) = (patcher.model for patcher in applied.model.get_additional_models_with_key(KEY))

        def passes() -> tuple[Passes, ...]:
            if evaluation == "merged":
                return (Passes(sampling.steps, adapters=len(loras)),)
            evaluations = round(applied.wrappers.last.plan.evaluations_per_step * sampling.steps)
            return scheduled(evaluations, sampling.steps, len(loras), execution)

        return Mode(lambda: network.sample(sampling, applied.model), lambda: bank.nbytes, passes)

    return mode


def two_products(evaluation: str, execution: str) -> Callable[[Network, SamplerSettings, Sequence[State]], Mode]:
    """The same without the kernel that makes both products of a low-rank addition in one launch."""

    def mode(network: Network, sampling: SamplerSettings, loras: Sequence[State]) -> Mode:
        blend = blended(evaluation, execution)(network, sampling, loras)

        def run() -> Tensor:
            with mock.patch.object(low_rank, "KERNEL_RANK", 0):
                return blend.run()

        return replace(blend, run=run)

    return mode


def _even_blend(loras: Sequence[State]) -> LoRABlend:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"reward{i}.safetensors") for i in range(len(loras))]
        for path, state in zip(paths, loras, strict=True):
            save_file(dict(state), path)
        adapters = tuple(RewardLoRA(path.stem, read_adapter(path)) for path in paths)
    return LoRABlend.of(adapters, (1 / len(loras),) * len(loras))


def hooked(network: Network, sampling: SamplerSettings, loras: Sequence[State]) -> Mode:
    """ComfyUI's way to the same average: a LoRA hook on a copy of each conditioning, weights swapped in between."""
    hooks = [comfy.hooks.create_hook_lora(lora=dict(state), strength_model=1.0, strength_clip=0.0) for state in loras]
    conditionings = [_hooked_prompt(prompt, hooks) for prompt in network.conditioning]
    model, most = network.model.clone(), [0]

    def watch(executor, *args, **kwargs):
        cached = (weight for group in model.cached_hook_patches.values() for weight, *_ in group.values())
        most[0] = max(most[0], _bytes([*cached, *(weight for weight, *_ in model.hook_backup.values())]))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "watch", watch)
    passes = (Passes(sampling.steps * len(loras)),)
    return Mode(lambda: network.sample(sampling, model, conditionings), lambda: most[0], lambda: passes, low_rank=False)


def _hooked_prompt(prompt, hooks) -> list:
    """The prompt once under every hook, at even strengths."""
    parts = [part for hook in hooks for part in comfy.hooks.set_hooks_for_conditioning(prompt, hook)]
    return [[tokens, {**options, "strength": 1 / len(hooks)}] for tokens, options in parts]


def copied(network: Network, sampling: SamplerSettings, loras: Sequence[State]) -> Mode:
    """The paper's code: m whole networks with merged weights, one call of each per step."""
    models = [comfy.sd.load_lora_for_models(network.load(), None, dict(state), 1.0, 0.0)[0] for state in loras]

    def average(apply, inputs):
        x, timestep, conditioning = inputs["input"], inputs["timestep"], inputs["c"]
        calls = [model.model.apply_model(x, timestep, **_copied(conditioning)) for model in models]
        return sum(calls) / len(calls)

    leader = models[0].clone()
    leader.set_additional_models("copies", models[1:])  # so that ComfyUI loads all of them
    leader.set_model_unet_function_wrapper(average)
    passes = (Passes(sampling.steps * len(loras)),)
    held = (len(models) - 1) * network.bytes
    return Mode(lambda: network.sample(sampling, leader), lambda: held, lambda: passes, low_rank=False)


def _copied(conditioning: dict) -> dict:
    return {**conditioning, "transformer_options": dict(conditioning["transformer_options"])}


def _bytes(tensors: Iterable[Tensor]) -> int:
    """What they take, memory that two of them share counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


COPIES = "m whole networks"
ON_A_CARD = ("stratified, two products",)  # which elsewhere is what stands without that word
MODES = {
    "exact, one after another": blended("exact", "sequential"),
    "exact, one batch": blended("exact", "batched"),
    "merged": blended("merged", "sequential"),
    "stratified": blended("stratified", "sequential"),
    "stratified, two products": two_products("stratified", "sequential"),
    "random": blended("random", "sequential"),
    "budget 1": blended("budget", "batched", partial(budget, evaluations=1.0)),
    "budget 1.1": blended("budget", "batched"),
    "ComfyUI's LoRA hooks": hooked,
    COPIES: copied,
}
