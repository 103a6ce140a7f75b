"""Bases that are stored in few bits, or are not all in memory: a blend on them equals the blend of merged copies."""

import json

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from . import kinds, loras, networks
from .graphs import latent
from .reference import ROUNDING, assert_differ, assert_equal, blended_reference

ALIGNMENT = 1.2
INPUTS = {"latent_image": latent(2), "steps": 2}


@pytest.fixture(scope="module")
def changes(lora_folder):
    """A plain LoRA and a LoKr on the attentions of `networks.unet`, as (tensors, file)."""
    model = networks.load(networks.unet()).model
    layers = loras.layers_of(model, comfy.utils.unet_to_diffusers(model.model_config.unet_config))
    attention = [layer for layer in layers if ".attn" in layer.name]

    def stem(name):
        return "lora_unet_" + name.replace(".", "_")

    plain = kinds.written(kinds.lora, attention, stem, seed=1)
    lokr = kinds.written(kinds.lokr, attention, stem, seed=2)
    dora = kinds.written(
        kinds.dora_of_columns, [layer for layer in attention if layer.shape[0] != layer.shape[1]], stem, seed=3
    )
    named = {"plain": plain, "lokr": lokr, "dora": dora}
    return {
        name: (tensors, loras.save(tensors, lora_folder, f"pressure_{name}.safetensors"))
        for name, tensors in named.items()
    }


def assert_blends(graph, model, rounded, changes, tolerance=ROUNDING):
    """rounded(): a model in float32 of the numbers that `model` has."""
    pairs = [changes[name] for name in ("plain", "lokr", "dora")]
    networks_ = [rounded().model, *(kinds.merged(rounded(), tensors) for tensors, _ in pairs)]
    weights = (1 - ALIGNMENT, 0.5 * ALIGNMENT, 0.3 * ALIGNMENT, 0.2 * ALIGNMENT)
    expected = graph.plain(blended_reference(rounded(), networks_, weights), **INPUTS)
    blend = graph.blend([file for _, file in pairs], "0.5, 0.3, 0.2", ALIGNMENT)
    for execution in ("batched", "sequential"):
        came = graph.blended(model, blend, execution, **INPUTS)
        assert_equal(came, expected, tolerance)
    assert_differ(came, graph.plain(model, **INPUTS))


def loaded(state, **options):
    return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_weights_of_few_bits_computed_in_more(graph, changes, dtype):
    """As Load Diffusion Model keeps them with weight_dtype fp8, and on cards without their arithmetic."""
    state = networks.unet()
    model = loaded(state, dtype=dtype)
    model.set_model_compute_dtype(torch.float32)
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {dtype}
    rounded = {name: tensor.to(dtype).float() for name, tensor in state.items()}
    assert_blends(graph, model, lambda: networks.load(rounded), changes)


def quantised():
    """A state dict with fp8 weights and their scales in the attentions, as ComfyUI saves them; and it in float32."""
    state, rounded = networks.unet(), networks.unet()
    for name in [name for name in state if "attn" in name and name.endswith(".weight") and state[name].dim() == 2]:
        scale = state[name].abs().max() / 448
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
        rounded[name] = state[name].float() * scale
        layer = name.removesuffix(".weight")
        state[f"{layer}.weight_scale"] = scale
        state[f"{layer}.comfy_quant"] = torch.tensor(
            list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8
        )
    return state, rounded


def test_comfyuis_quantised_layers(graph, changes):
    state, rounded = quantised()
    model = loaded(state)
    kinds_ = {type(module.weight).__name__ for name, module in model.model.named_modules() if name.endswith("to_q")}
    assert kinds_ == {"QuantizedTensor"}
    assert_blends(graph, model, lambda: networks.load(rounded), changes)


class Packed(torch.Tensor):
    """Eight-bit numbers in blocks with a scale each, of the shape they stand for: as GGUF's loaders hold them."""

    @staticmethod
    def of(weight):
        blocks = weight.reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        packed = torch.cat([(blocks / scale).round().to(torch.int8), scale.float().view(torch.int8)], 1)
        packed = packed.as_subclass(Packed)
        packed.stands_for = weight.shape
        return packed

    @property
    def shape(self):
        return self.stands_for

    def numbers(self):
        raw = self.as_subclass(torch.Tensor)
        return (raw[:, :32].float() * raw[:, 32:].contiguous().view(torch.float32)).reshape(self.stands_for)


def _packed(model):
    """Replace the attentions' linear layers by layers that unpack their weight whenever they run."""
    for module in model.model.modules():
        if isinstance(module, nn.Linear) and module.in_features % 32 == 0:
            packed = Packed.of(module.weight.data)
            del module.weight
            module.weight = packed  # GGUF's are parameters of the same kind
            module.forward = lambda x, m=module: nn.functional.linear(x, m.weight.numbers().to(x), m.bias)
    return model


def test_layers_that_unpack_their_weight(graph, changes):
    rounded = networks.unet()
    modules = dict(networks.load(rounded).model.diffusion_model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and module.in_features % 32 == 0:
            rounded[f"{name}.weight"] = Packed.of(rounded[f"{name}.weight"]).numbers()
    assert_blends(graph, _packed(networks.load(networks.unet())), lambda: networks.load(rounded), changes)


# --- weights that are not all in memory


@pytest.fixture
def little_memory(monkeypatch):
    """ComfyUI treats the CPU as a card with room for a tenth of the model's weights."""
    management = comfy.model_management
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "lowvram_available", True)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.LOW_VRAM)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)

    def free(device=None, torch_free_too=False):
        return (6_000_000, 6_000_000) if torch_free_too else 6_000_000

    monkeypatch.setattr(management, "get_free_memory", free)
    yield
    management.unload_all_models()


@pytest.mark.parametrize("below", ["nothing below", "a LoRA of ComfyUI's below"])
def test_a_partly_loaded_model(graph, changes, little_memory, below):
    """Most weights stay outside and are cast, and patched, each time they are used."""

    def model():
        made = networks.load(networks.unet())
        if below == "nothing below":
            return made
        return comfy.sd.load_lora_for_models(made, None, changes["plain"][0], 0.5, 0.0)[0]

    def rounded():
        made = networks.unet()
        if below != "nothing below":
            merged = model()
            merged.patch_model()
            made = {name: value.clone() for name, value in merged.model.diffusion_model.state_dict().items()}
        return networks.load(made)

    partly = model()
    outside = []
    partly.add_callback_with_key(
        comfy.patcher_extension.CallbacksMP.ON_LOAD,
        "test",
        lambda patcher, *_: outside.append(patcher.model.model_lowvram),
    )
    assert_blends(graph, partly, rounded, changes)
    assert outside and all(outside)


class _NoBuffer:
    """In place of the pinned memory of comfy_aimdo, which needs a card."""

    size = 0

    def __init__(self, *args):
        pass


@pytest.fixture
def dynamic(monkeypatch):
    """dynamic(state): a model under ComfyUI's dynamic patcher, whose allocator of memory on the card is left out."""
    patcher = comfy.model_patcher
    if not hasattr(patcher, "ModelPatcherDynamic"):
        pytest.skip("ModelPatcherDynamic is not in this ComfyUI")
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    if hasattr(getattr(patcher, "comfy_aimdo", None), "host_buffer"):  # newer ones pin memory on the host too
        monkeypatch.setattr(patcher.comfy_aimdo.host_buffer, "HostBuffer", _NoBuffer)
    monkeypatch.setattr(patcher.ModelPatcherDynamic, "_vbar_get", lambda self, create=False: None)
    monkeypatch.setattr(patcher, "CoreModelPatcher", patcher.ModelPatcherDynamic)
    yield lambda state: networks.load(state)
    comfy.model_management.unload_all_models()


def test_a_dynamic_patcher(graph, changes, dynamic, monkeypatch):
    model = dynamic(networks.unet())
    assert model.is_dynamic()
    with monkeypatch.context() as plainly:
        plainly.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        rounded = [networks.load(networks.unet()) for _ in range(8)]
    assert_blends(graph, model, rounded.pop, changes)


@pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"), reason="several cards are not in this ComfyUI"
)
def test_the_copy_that_comfyui_makes_for_another_card(graph, changes, tmp_path):
    """It has weights and factors of its own; here both are on the CPU."""
    save_file(networks.unet(), tmp_path / "unet.safetensors")
    base = comfy.sd.load_diffusion_model(str(tmp_path / "unet.safetensors"))
    blend = graph.blend([changes[name][1] for name in ("plain", "lokr")], "0.5, 0.5", ALIGNMENT)
    applied = graph.applied(base, blend)
    expected = graph.plain(applied, **INPUTS)
    copy = applied.deepclone_multigpu(new_load_device=torch.device("cpu"))
    (second,), (first,) = (model.get_additional_models_with_key("diffusion_blend") for model in (copy, applied))
    assert copy.model is not applied.model and second.model is not first.model
    used = []
    first.model.attach = lambda *args: used.append(args)
    assert_equal(graph.plain(copy, **INPUTS), expected, ROUNDING)
    assert not used
