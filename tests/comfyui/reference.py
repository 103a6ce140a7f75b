"""What a blend has to equal: copies of the base model with merged weights, their predictions added up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .host import submodule

FP32 = 1e-4  # relative: over a few steps of a sampler, low-rank and merged arithmetic differ by some 1e-6


def blended_reference(model, networks: Sequence[nn.Module], coefficients: Sequence[float]):
    """`model` with its predictions replaced by sum_i c_i networks[i](x); its own patches reach every network."""
    return _replaced(model, lambda call: sum(c * _apply(n, call) for n, c in zip(networks, coefficients, strict=True)))


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


def _replaced(model, predict):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda _, call: predict(call))
    return clone


def _apply(network: nn.Module, call: dict) -> Tensor:
    arguments = {**call["c"], "transformer_options": call["c"]["transformer_options"].copy()}
    if arguments.get("control"):  # UNets empty these lists while they run
        arguments["control"] = {place: list(outputs) for place, outputs in arguments["control"].items()}
    return network.apply_model(call["input"], call["timestep"], **arguments)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """max |result - expected| / max |expected|."""
    return float((result - expected).abs().max() / expected.abs().max())


def assert_equal(result: Tensor, expected: Tensor, tolerance: float = FP32) -> None:
    """Within fp32 rounding of a sampling run."""
    assert result.shape == expected.shape
    assert relative_error(result, expected) <= tolerance, relative_error(result, expected)


def assert_differ(result: Tensor, expected: Tensor) -> None:
    """By far more than rounding: what a test varies must show, or its comparison shows nothing."""
    assert relative_error(result, expected) > 0.01
