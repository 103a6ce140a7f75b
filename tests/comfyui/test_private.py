"""Every part of ComfyUI that we read and that is no public interface is still there: by name, so that a newer ComfyUI
breaks here first."""

import inspect

import comfy.conds
import comfy.ops
import comfy.samplers
import pytest
import torch

from .host import submodule

CASTING = ("input", "dtype", "device", "bias_dtype", "offloadable")


def test_weights_in_use_are_read_as_comfyuis_layers_read_them():
    assert set(CASTING) <= set(inspect.signature(comfy.ops.cast_bias_weight).parameters)
    assert list(inspect.signature(comfy.ops.uncast_bias_weight).parameters)[:1] == ["s"]
    assert comfy.ops.CastWeightBiasOp.weight_function == [] == comfy.ops.CastWeightBiasOp.bias_function


def test_some_function_moves_the_weights_of_streamed_models():
    assert any(hasattr(comfy.ops, name) for name in submodule("nodes.host.private")._MOVING)


@pytest.mark.parametrize("name", ["process_cond", "can_concat", "concat", "size", "_copy_with"])
def test_conditionings_have_the_methods_that_carry_them_to_the_model(name):
    assert hasattr(comfy.conds.CONDRegular, name)


def test_a_layers_parameter_is_read_with_its_patches():
    private = submodule("nodes.host.private")
    layer = comfy.ops.manual_cast.Linear(3, 2)
    layer.weight, layer.bias = (torch.nn.Parameter(torch.ones(*s), requires_grad=False) for s in ((2, 3), (2,)))
    layer.weight_function = [lambda weight: weight + 1]
    read = [private.parameter_in_use(layer, name, torch.device("cpu")) for name in ("weight", "bias", "scale")]
    assert torch.equal(read[0], torch.full((2, 3), 2.0)) and torch.equal(read[1], torch.ones(2)) and read[2] is None
    assert torch.equal(layer.weight, torch.ones(2, 3))
