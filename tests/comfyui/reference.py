"""What a blend has to equal: copies of the base model with merged weights, their predictions added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom
from torch import Tensor, nn

from . import host
from .host import submodule

ROUNDING = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}[host.DTYPE]
"""Relative: over a few steps of a sampler, low-rank and merged arithmetic differ by some 1e-6 in float32. In half
precision the merged weights themselves are rounded."""


Wrapper = Callable[[Callable, dict], Tensor]
"""wrapper(apply_model, call): ComfyUI's function wrapper."""


def blended_reference(
    model,
    networks: Sequence[nn.Module],
    coefficients: Sequence[float],
    through: Callable[[nn.Module], Wrapper] | None = None,
):
    """`model` with its predictions replaced by sum_i c_i networks[i](x); its own patches reach every network.

    through: the function wrapper of each network, where the patch in question is one: a model has place for one only.
    """
    wrappers = [through(network) if through else None for network in networks]

    def predict(call):
        calls = zip(coefficients, networks, wrappers, strict=True)
        return sum(c * _apply(network, call, wrapper) for c, network, wrapper in calls)

    return _replaced(model, predict)


def switching_reference(model, networks: Sequence[nn.Module], choices: Tensor, steps_of_calls: Sequence[int]):
    """`model` with the prediction of one network per step and image.

    choices: (images, steps), places in `networks`.  steps_of_calls: the step of each of the sampler's model calls.
    """
    steps = iter(steps_of_calls)

    def predict(call):
        chosen = choices[:, next(steps)]
        rows = chosen.repeat(len(call["input"]) // len(chosen)).tolist()  # every chunk holds the same images
        predictions = {network: _apply(networks[network], call) for network in set(rows)}
        return torch.stack([predictions[network][row] for row, network in enumerate(rows)])

    return _replaced(model, predict)


def planned_reference(model, networks: Sequence[nn.Module], plan):
    """`model`, an eps or v one, under a plan of blend_core on whole networks, for a sampler of one call per step."""
    steps = iter(range(len(plan.variants)))

    def predict(call):
        predictions = torch.stack([_apply(network, call) for network in networks])
        rows = torch.arange(predictions.shape[1])

        def evaluate(variants):
            return predictions[variants.repeat(1, len(rows) // variants.shape[1]), rows]

        state = submodule("blend_core.parameterization").State(call["input"], 1.0, float(call["timestep"].max()))
        return plan(evaluate, next(steps), call=submodule("blend_core.plan").Call(state=state))

    return _replaced(model, predict)


def fused_reference(
    graph, model, networks: Sequence[nn.Module], coefficients, etas, cfg=7.0, flow=False, **inputs
) -> Tensor:
    """What MSDDA has to equal: each network guided and stepped on its own, the steps fused by precision.

    coefficients: numbers, or maps that broadcast to the latents.  flow: whether the noise is rectified flow's.
    """
    active = {"network": networks[0]}
    switching = _replaced(model, lambda call: _apply(active["network"], call))

    def sampler_function(model, x, sigmas, extra_args, callback=None, disable=None):
        noise = default_noise_sampler(x, seed=extra_args["seed"])
        for now, after in pairwise(sigmas):
            parts = []
            for network, c, eta in zip(networks, coefficients, etas, strict=True):
                active["network"] = network
                denoised = model(x, now * x.new_ones(len(x)), **extra_args)
                mean, variance = (_flow_step if flow else _ancestral_step)(x, denoised, now, after, eta)
                parts.append((torch.as_tensor(c).to(x.device) / variance, mean))
            precision = sum(weight for weight, _ in parts)
            x = sum(weight * mean for weight, mean in parts) / precision
            if after > 0:
                x = x + noise(now, after) / precision**0.5
        return x

    settings = graph._inputs({"cfg": cfg, **inputs})
    sigmas = BasicScheduler.execute(model, settings["scheduler"], settings["steps"], settings["denoise"]).result[0]
    return SamplerCustom.execute(
        switching, True, settings["seed"], cfg, settings["positive"], settings["negative"],
        comfy.samplers.KSAMPLER(sampler_function), sigmas, settings["latent_image"],
    ).result[0]["samples"]  # fmt: skip


def _ancestral_step(x, denoised, now, after, eta):
    """(mean, variance) of one step; at the last, where there is no noise, the ratios of the variances."""
    up = eta * after * (1 - (after / now) ** 2) ** 0.5
    mean = denoised + (x - denoised) * (after**2 - up**2) ** 0.5 / now
    return mean, (up**2 if after > 0 else eta**2)


def _flow_step(x, denoised, now, after, eta):
    down = after * (1 + (after / now - 1) * eta)
    shrink = (1 - after) / (1 - down)
    mean = shrink * (down / now * x + (1 - down / now) * denoised)
    return mean, (after**2 - (down * shrink) ** 2 if after > 0 else eta * (2 - eta))


def _replaced(model, predict):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda _, call: predict(call))
    return clone


def _apply(network: nn.Module, call: dict, wrapper: Wrapper | None = None) -> Tensor:
    arguments = {**call["c"], "transformer_options": call["c"]["transformer_options"].copy()}
    if arguments.get("control"):  # UNets empty these lists while they run
        arguments["control"] = {place: list(outputs) for place, outputs in arguments["control"].items()}
    copy = {**call, "input": call["input"].clone(), "c": arguments}  # EasyCache writes into the input
    network.to(copy["input"].device)  # ComfyUI loads the base alone
    if wrapper is not None:
        return wrapper(network.apply_model, copy)
    return network.apply_model(copy["input"], copy["timestep"], **arguments)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """max |result - expected| / max |expected|."""
    return float((result - expected).abs().max() / expected.abs().max())


errors: list[float] = []
"""The relative errors of all comparisons so far; conftest.py prints the largest."""


def assert_equal(result: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    """Within the rounding of a sampling run."""
    assert result.shape == expected.shape
    errors.append(relative_error(result, expected))
    assert errors[-1] <= tolerance, errors[-1]


def assert_differ(result: Tensor, expected: Tensor) -> None:
    """By far more than rounding: what a test varies must show, or its comparison shows nothing."""
    assert relative_error(result, expected) > 0.01
