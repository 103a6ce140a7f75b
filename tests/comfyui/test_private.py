"""Every part of ComfyUI that we read and that is no public interface is still there: by name, so that a newer ComfyUI
breaks here first."""

import copy
import inspect

import comfy.conds
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel

from .host import submodule

PRIVATE = submodule("nodes.host.private")

CASTING = ("input", "dtype", "device", "bias_dtype", "offloadable")


def test_weights_in_use_are_read_as_comfyuis_layers_read_them():
    assert set(CASTING) <= set(inspect.signature(comfy.ops.cast_bias_weight).parameters)
    assert list(inspect.signature(comfy.ops.uncast_bias_weight).parameters)[:1] == ["s"]
    assert comfy.ops.CastWeightBiasOp.weight_function == [] == comfy.ops.CastWeightBiasOp.bias_function


def test_some_function_moves_the_weights_of_streamed_models():
    assert any(hasattr(comfy.ops, name) for name in PRIVATE._MOVING)


@pytest.mark.parametrize("name", ["process_cond", "can_concat", "concat", "size", "_copy_with"])
def test_conditionings_have_the_methods_that_carry_them_to_the_model(name):
    assert hasattr(comfy.conds.CONDRegular, name)


def test_a_layers_parameter_is_read_with_its_patches():
    layer = comfy.ops.manual_cast.Linear(3, 2)
    layer.weight, layer.bias = (torch.nn.Parameter(torch.ones(*s), requires_grad=False) for s in ((2, 3), (2,)))
    layer.weight_function = [lambda weight: weight + 1]
    read = [PRIVATE.parameter_in_use(layer, name, torch.device("cpu")) for name in ("weight", "bias", "scale")]
    assert torch.equal(read[0], torch.full((2, 3), 2.0)) and torch.equal(read[1], torch.ones(2)) and read[2] is None
    assert torch.equal(layer.weight, torch.ones(2, 3))


def test_a_network_is_found_below_the_envelope_of_torch_compile(base):
    network, model = base.model.diffusion_model, copy.copy(base.model)
    assert PRIVATE.network_of(model) is network
    model._modules = model._modules | {"diffusion_model": torch.compile(network)}
    assert PRIVATE.network_of(model) is network


def test_a_modules_stored_tensors_are_those_of_its_state_dict():
    module = torch.nn.BatchNorm2d(3)
    module.register_buffer("table", torch.zeros(2), persistent=False)
    assert PRIVATE.names_of_stored(module) == set(module.state_dict())


def test_a_model_applies_itself_below_its_wrappers(base):
    assert list(inspect.signature(PRIVATE.inner_apply_model(base.model)).parameters)[:2] == ["x", "t"]


def test_the_wrapper_of_torch_compile_model_is_known(base):
    (compiled,) = TorchCompileModel.execute(base.clone(), "inductor").result
    (wrapper,) = compiled.get_all_wrappers(WrappersMP.APPLY_MODEL)
    assert PRIVATE.compiles(wrapper) and not PRIVATE.compiles(print)
    assert PRIVATE.is_compiled({"wrappers": compiled.wrappers}) and not PRIVATE.is_compiled({})


def test_a_prompts_lora_hook_shows_on_the_patcher(base):
    assert base.current_hooks is None and not PRIVATE.has_lora_hook(base)


def test_a_samplers_function_has_its_name():
    assert PRIVATE.sampler_function_name(comfy.samplers.ksampler("heun")) == "sample_heun"
    assert PRIVATE.sampler_function_name(comfy.samplers.Sampler()) == ""


def test_a_copy_of_a_patcher_shares_nothing_that_is_replaced(base):
    assert set(PRIVATE._REPLACED) - vars(base).keys() <= {"backup_buffers"}  # 0.14.1 has no such
    clone = PRIVATE.own_copy(base, torch.nn.Module())
    assert clone.parent is None and clone.clone_base_uuid != getattr(base, "clone_base_uuid", None)
    assert all(getattr(clone, name) is not getattr(base, name, None) for name in PRIVATE._REPLACED)
