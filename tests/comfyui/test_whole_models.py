"""A whole model as a basis equals blended copies of networks, alone and beside LoRAs; no model keeps a trace of it."""

import gc
from functools import cached_property
from itertools import pairwise

import comfy.controlnet
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_hooks import CreateHookLoraModelOnly
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_torch_compile import TorchCompileModel

from nodes import ControlNetApplyAdvanced, LoraLoaderModelOnly, UNETLoader

from . import loras, networks
from .families import named
from .family_cases import Case
from .graphs import latent
from .host import submodule
from .reference import (
    assert_differ,
    assert_equal,
    blended_reference,
    fused_reference,
    planned_reference,
    switching_reference,
)
from .test_diagnostics import diagnose
from .test_faults import STAGES, fail, interrupt, wrapped
from .traces import Snapshot, alive, resident_bytes

EXECUTIONS = ("auto", "batched", "sequential")
ALIGNMENT = 0.9
STEPS = 6
SEED = 2  # of one variant per step: the images take different ones
ETAS = (0.9, 1.0, 0.4, 0.7)


def fine_tuned(model, seed=9):
    """`model` with every weight moved, as a full fine-tune does. Returns it."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.model.diffusion_model.parameters():
        if weight.dim() > 1:
            weight.data += torch.randn(weight.shape, generator=generator) * weight.std() * 0.5
    return model


class Whole(Case):
    """A family's two LoRAs and a full fine-tune of its base."""

    @cached_property
    def tuned(self):
        return fine_tuned(self.family.load())

    @cached_property
    def bases(self):
        """Three bases, the whole model between the LoRAs."""
        return [self.files[0], self.graph.whole(self.tuned), self.files[1]]

    @cached_property
    def all_networks(self):
        """Of the same, the base first."""
        base, first, second = self.networks
        return [base, first, self.tuned.model, second]

    def mixture(self, kind, alignment=ALIGNMENT):
        """(blend, networks, coefficients) of all three bases, or of the whole model alone."""
        if kind == "alone":
            blend = self.graph.blend([self.bases[1]], "1", alignment)
            return blend, [self.model.model, self.tuned.model], (1 - alignment, alignment)
        blend = self.graph.blend(self.bases, "0.3, 0.5, 0.2", alignment)
        return blend, self.all_networks, (1 - alignment, *(alignment * w for w in (0.3, 0.5, 0.2)))


@pytest.fixture(scope="module", params=["SD 1.5", "Flux", "HiDream"])
def case(request, nodes, lora_folder):
    """A UNet of eps, a transformer of flow, and a network that never takes two variants in one pass."""
    family = named(request.param)
    if family.missing:
        pytest.skip(f"{family.name} is not in this ComfyUI")
    return Whole(family, nodes, lora_folder)


@pytest.fixture(scope="module")
def small(nodes, lora_folder):
    """The quickest of them."""
    return Whole(named("Flux"), nodes, lora_folder)


@pytest.fixture(scope="module")
def sd15(nodes, lora_folder):
    return Whole(named("SD 1.5"), nodes, lora_folder)


@pytest.fixture(autouse=True)
def no_pass_fails(caplog):
    """A pass that fails is made again in smaller ones, with the same numbers: here none does."""
    yield
    assert not [record for record in caplog.records if "going on one at a time" in record.getMessage()]


@pytest.fixture
def untouched(small):
    """Whatever a test does, both models are as before once ComfyUI has unloaded them."""
    before = Snapshot(small.model), Snapshot(small.tuned)
    yield
    for snapshot in before:
        snapshot.assert_same()
    assert small.tuned.model.current_patcher is None


# --- exactness


@pytest.mark.parametrize("kind", ["alone", "mixed"])
def test_exact_equals_the_networks_blended(case, kind):
    blend, copies, coefficients = case.mixture(kind, 1.3)
    expected = case.graph.plain(blended_reference(case.model, copies, coefficients), **case.inputs)
    for execution in EXECUTIONS:
        assert_equal(case.graph.blended(case.model, blend, execution, **case.inputs), expected)
    assert_differ(case.graph.plain(case.model, **case.inputs), expected)


@pytest.mark.parametrize("kind", ["alone", "mixed"])
@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_one_variant_per_step_equals_the_networks_switched(case, kind, evaluation):
    blend, copies, coefficients = case.mixture(kind, 0.6)
    estimators = submodule("blend_core.estimators")
    inputs = {**case.inputs, "steps": STEPS, "latent_image": latent(3, case.family.latent)}
    seeds = [estimators.image_seed(SEED, image) for image in range(3)]
    estimator = {"stratified": estimators.stratified, "random": estimators.random}[evaluation]
    choices = estimator(coefficients, STEPS, seeds).variants[:, 0].T
    whole = (choices == (1 if kind == "alone" else 2)).sum(0)
    assert ((whole > 0) & (whole < 3)).any(), "no pass has to be split"
    expected = case.graph.plain(switching_reference(case.model, copies, choices, range(STEPS)), **inputs)
    for execution in EXECUTIONS:
        applied = case.graph.applied(case.model, blend, execution, evaluation, SEED)
        assert_equal(case.graph.plain(applied, **inputs), expected)


@pytest.mark.parametrize("kind", ["alone", "mixed"])
def test_msdda_equals_the_networks_steps_fused(case, kind):
    blend, copies, coefficients = case.mixture(kind)
    etas = ETAS[:2] if kind == "alone" else ETAS
    expected = fused_reference(case.graph, case.model, copies, coefficients, etas, flow=case.flow, **case.inputs)
    for execution in EXECUTIONS:
        text = ", ".join(f"{eta:g}" for eta in etas[1:])
        assert_equal(case.graph.msdda(case.model, blend, execution, text, etas[0], **case.inputs), expected)


def test_budget_equals_its_plan_on_the_networks(sd15):
    blend, copies, coefficients = sd15.mixture("mixed")
    estimators, inputs = submodule("blend_core.estimators"), {**sd15.inputs, "steps": 5, "cfg": 1.0}
    plan = estimators.budget(coefficients, 5, [estimators.image_seed(1, image) for image in range(2)], evaluations=1.6)
    expected = sd15.graph.plain(planned_reference(sd15.model, copies, plan), **inputs)
    result, _ = sd15.graph.stochastic(sd15.model, blend, "budget", budget=1.6, **inputs)
    assert_equal(result, expected)


def test_patches_of_the_base_reach_the_whole_model(sd15):
    """ControlNet's residuals are emptied by the network that takes them; guidance and wrappers act on every basis."""
    net = comfy.controlnet.ControlNet(
        networks.control_net(), load_device=sd15.model.load_device, manual_cast_dtype=torch.float32
    )
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    positive, negative = ControlNetApplyAdvanced().apply_controlnet(
        sd15.graph.positive, sd15.graph.negative, net, hint, 0.8, 0.0, 1.0
    )
    (model,) = RescaleCFG().patch(sd15.model, 0.7)
    seen = []
    model = wrapped(model, WrappersMP.APPLY_MODEL, lambda: seen.append(1))
    blend, copies, coefficients = sd15.mixture("mixed")
    inputs = {**sd15.inputs, "positive": positive, "negative": negative}
    expected = sd15.graph.plain(blended_reference(model, copies, coefficients), **inputs)
    assert_differ(sd15.graph.plain(blended_reference(sd15.model, copies, coefficients), **inputs), expected)
    for execution in EXECUTIONS:
        assert_equal(sd15.graph.blended(model, blend, execution, **inputs), expected)
        inside = wrapped(
            sd15.graph.applied(sd15.model, blend, execution), WrappersMP.APPLY_MODEL, lambda: seen.append(2)
        )
        seen.clear()
        sd15.graph.plain(inside, **sd15.inputs)
        passes = {"auto": 2, "batched": 2, "sequential": 4}[execution]  # base and LoRAs, and the whole model
        assert seen == [2] * passes * sd15.inputs["steps"]


@pytest.mark.parametrize("first", ["compiled, then blended", "blended, then compiled"])
def test_a_compiled_base_is_not_put_in_the_whole_models_place(small, first):
    blend, copies, coefficients = small.mixture("alone")
    inputs = {**small.inputs, "steps": 1, "cfg": 1.0, "latent_image": latent(1, small.family.latent)}

    def compiled(model):
        return TorchCompileModel.execute(model, "eager").result[0]

    if first.startswith("compiled"):
        model = small.graph.applied(compiled(small.model), blend)
    else:
        model = compiled(small.graph.applied(small.model, blend))
    reference = blended_reference(small.model, copies, coefficients)
    assert_equal(small.graph.plain(model, **inputs), small.graph.plain(reference, **inputs))


# --- what a whole model with a LoRA's weights does is what that LoRA does


@pytest.fixture(scope="module")
def twins(sd15):
    """Three bases with LoRAs only, and the same with the second one merged into a model of its own."""
    merged = sd15.family.load()
    sd15._loras[1].merge_into(merged.model)
    return [*sd15.files, sd15.files[0]], [sd15.files[0], sd15.graph.whole(merged), sd15.files[0]]


def variations(graph, bases):
    """Blends in time and over the image."""
    one, other = (graph.blend(bases, weights, 0.8) for weights in ("0.5, 0.3, 0.2", "0, 0.9, 0.1"))
    other = type(one)(other.schedule, one.bases)
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(4))
    (schedule,) = (
        graph.nodes["BlendSchedule"]
        .execute(blends={"blend_0": one, "blend_1": other}, curve="linear", positions="")
        .result
    )
    (region,) = graph.nodes["BlendRegion"].execute(blend=other, mask=mask, elsewhere=one).result
    return {"schedule": schedule, "region": region}


@pytest.mark.parametrize("which", ["schedule", "region"])
def test_a_whole_model_varies_over_time_and_place_as_its_lora_does(sd15, twins, which):
    of_loras, mixed = (variations(sd15.graph, bases)[which] for bases in twins)
    graph, inputs = sd15.graph, {**sd15.inputs, "steps": 3}
    expected = graph.blended(sd15.model, of_loras, **inputs)
    for execution in EXECUTIONS:
        assert_equal(graph.blended(sd15.model, mixed, execution, **inputs), expected)
        assert_equal(
            graph.msdda(sd15.model, mixed, execution, "1, 0.5, 0.7", **inputs),
            graph.msdda(sd15.model, of_loras, execution, "1, 0.5, 0.7", **inputs),
        )


def test_diagnostics_see_a_whole_model_as_its_lora(sd15, twins):
    of_loras, mixed = (
        diagnose(sd15.graph, sd15.model, sd15.graph.blend(bases, "0.5, 0.5, 0"), **sd15.inputs) for bases in twins
    )
    assert_equal(mixed[3], of_loras[3])
    for step, expected in zip(mixed[2]["steps"], of_loras[2]["steps"], strict=True):
        assert step["bends"] == pytest.approx(expected["bends"], rel=1e-3)
        assert step["cosines"] == pytest.approx(expected["cosines"], abs=1e-3)
        assert step["merged"] is None and expected["merged"] > 0  # a whole model adds up with no LoRA
    assert mixed[2]["way"] == "" and "Merged or exact" in of_loras[1]


# --- LoRAs in it, copies of it, twice the same


@pytest.fixture(scope="module")
def merged_again(small):
    """The full fine-tune with a LoRA merged: what ComfyUI's loader makes of it."""
    copy = fine_tuned(small.family.load())
    return small._loras[0].merge_into(copy.model)


def test_a_lora_by_comfyuis_loader_is_part_of_the_whole_model(small, merged_again, untouched):
    (model,) = LoraLoaderModelOnly().load_lora_model_only(small.tuned, small.files[0], 1.0)
    assert model.patches
    blend = small.graph.blend([small.graph.whole(model), small.files[1]], "0.6, 0.4")
    copies = [small.model.model, merged_again, small.networks[2]]
    expected = small.graph.plain(blended_reference(small.model, copies, (0, 0.6, 0.4)), **small.inputs)
    for execution in EXECUTIONS:
        assert_equal(small.graph.blended(small.model, blend, execution, **small.inputs), expected)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("loaded", [False, True], ids=["unloaded", "loaded with another LoRA"])
def test_the_base_with_a_lora_is_a_basis_where_it_has_a_copy(small, loaded, untouched):
    loader = LoraLoaderModelOnly()
    (model,) = loader.load_lora_model_only(small.model, small.files[0], 1.0)
    if loaded:  # its weights are patched while the copy is made
        small.graph.plain(loader.load_lora_model_only(small.model, small.files[1], 1.0)[0], **small.inputs)
    whole = small.graph.whole(model, own_copy=True)
    assert whole.model.model is not small.model.model
    blend = small.graph.blend([whole, small.files[1]], "0.6, 0.4", ALIGNMENT)
    expected = small.graph.blended(small.model, small.graph.blend(small.files, "0.6, 0.4", ALIGNMENT), **small.inputs)
    assert_equal(small.graph.blended(small.model, blend, **small.inputs), expected)
    comfy.model_management.unload_all_models()


def test_a_copy_of_what_comfyuis_loader_loaded(small, tmp_path, monkeypatch):
    loras.save(networks.flux(), tmp_path, "flux.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    (base,) = UNETLoader().load_unet("flux.safetensors", "default")
    (model,) = LoraLoaderModelOnly().load_lora_model_only(base, small.files[0], 1.0)
    blend = small.graph.blend([small.graph.whole(model, own_copy=True), small.files[1]], "0.6, 0.4")
    expected = small.graph.blended(base, small.graph.blend(small.files, "0.6, 0.4"), **small.inputs)
    assert_equal(small.graph.blended(base, blend, **small.inputs), expected)


def test_one_model_may_stand_in_a_blend_twice(small, untouched):
    twice = [small.graph.whole(small.tuned), small.graph.whole(small.tuned.clone())]
    blend = small.graph.blend(twice, "0.5, 0.5")
    assert blend.names == ("whole", "whole (2)")
    expected = small.graph.blended(small.model, small.graph.blend(twice[:1], "1"), **small.inputs)
    assert_equal(small.graph.blended(small.model, blend, **small.inputs), expected)


def test_two_whole_models(small):
    other = fine_tuned(small.family.load(), seed=10)
    blend = small.graph.blend([small.graph.whole(small.tuned), small.graph.whole(other)], "0.7, 0.3")
    reference = blended_reference(small.model, [small.tuned.model, other.model], (0.7, 0.3))
    assert_equal(small.graph.blended(small.model, blend, **small.inputs), small.graph.plain(reference, **small.inputs))


def test_the_kl_weight_counts_as_a_loras_does(small):
    bases = [small.graph.whole(small.tuned, kl_weight=w) for w in (0.1, 0.3)]
    blend = small.graph.blend(bases, "0.5, 0.5", target_kl_weight=0.2)
    assert blend.coefficients(1)[0][0].tolist() == pytest.approx([0, 0.25, 0.75])
    assert small.bases[1].kl_weight is None


# --- memory


def test_the_nodes_say_what_a_whole_model_takes(small):
    size = f"{small.tuned.model_size() / 2**20:.0f} MB"
    node = small.graph.nodes["ModelAsRewardLoRA"].execute(model=small.tuned, label=" ", kl_weight=0.25)
    assert node.ui["text"] == (f"reward\nFlux, {size} next to the base\nKL weight: 0.25",)
    node = small.graph.nodes["ApplyBlend"].execute(
        model=small.model, blend=small.mixture("mixed")[0], evaluation="exact", execution="auto", seed=0
    )
    assert f"whole: a whole model, {size} next to the base" in node.ui["text"][0]


def test_what_reaches_the_base_alone_is_said(small):
    (with_lora,) = LoraLoaderModelOnly().load_lora_model_only(small.model, small.files[0], 1.0)
    blend, _, _ = small.mixture("mixed")

    def shown(model, blend):
        node = small.graph.nodes["ApplyBlend"]
        made = node.execute(model=model, blend=blend, evaluation="exact", execution="auto", seed=0)
        return made.ui["text"][0]

    assert "note: LoRAs of the base model do not act in whole models" in shown(with_lora, blend)
    assert "note:" not in shown(small.model, blend)
    assert "note:" not in shown(with_lora, small.graph.blend(small.files))


def test_comfyui_loads_and_counts_it_with_the_base(small, monkeypatch):
    asked = []
    original = comfy.model_management.load_models_gpu

    def load(models, **kwargs):
        asked.append([model.model for model in models])
        return original(models, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    comfy.model_management.unload_all_models()
    blend, _, _ = small.mixture("alone")
    small.graph.blended(small.model, blend, **small.inputs)
    assert asked[0] == [small.model.model, small.tuned.model]  # and no empty bank
    for model in (small.model, small.tuned):
        assert sum(model.is_clone(loaded.model) for loaded in comfy.model_management.current_loaded_models) == 1


# --- refusals


def test_what_cannot_be_a_basis_is_refused(small, sd15):
    blended = small.graph.applied(small.model, small.mixture("mixed")[0])
    with pytest.raises(ValueError, match="this model is blended already"):
        small.graph.whole(blended)
    (guided,) = RescaleCFG().patch(sd15.tuned, 0.7)
    with pytest.raises(ValueError, match=r"patches besides those of its weights \(.*sampler_cfg_function"):
        sd15.graph.whole(guided)
    patched = sd15.tuned.clone()
    patched.set_model_attn1_output_patch(lambda out, options: out)
    with pytest.raises(ValueError, match="reaches every basis"):
        sd15.graph.whole(patched)
    with pytest.raises(ValueError, match="reaches every basis"):
        small.graph.whole(wrapped(small.tuned, WrappersMP.DIFFUSION_MODEL, interrupt))


def test_a_model_of_another_kind_is_refused(small, sd15):
    def refused(base, model, message):
        with pytest.raises(ValueError, match=message):
            sd15.graph.applied(base, sd15.graph.blend([sd15.graph.whole(model)]))

    refused(sd15.model, small.tuned, "its network is Flux, expected UNetModel")
    inpainting = networks.sd15(in_channels=9)
    refused(sd15.model, inpainting, r"input_blocks.0.0 has the shape \(64, 9, 3, 3\), expected \(64, 4, 3, 3\)")
    (v,) = ModelSamplingDiscrete().patch(sd15.tuned, "v_prediction", False)
    refused(sd15.model, v, "it predicts as .*V_PREDICTION")
    (eps,) = ModelSamplingDiscrete().patch(sd15.tuned, "eps", False)
    sd15.graph.applied(sd15.model, sd15.graph.blend([sd15.graph.whole(eps)]))


def test_weights_that_are_shared_are_refused_with_what_to_do(small):
    (with_lora,) = LoraLoaderModelOnly().load_lora_model_only(small.model, small.files[0], 1.0)
    tuned = [small.tuned, LoraLoaderModelOnly().load_lora_model_only(small.tuned, small.files[0], 1.0)[0]]
    for models in ([small.model], [with_lora], tuned):
        blend = small.graph.blend([small.graph.whole(model) for model in models])
        with pytest.raises(ValueError, match="Switch on own_copy"):
            small.graph.applied(small.model, blend)


def test_a_lora_hook_on_a_prompt_is_refused(small):
    """It changes the base's weights alone, and would be missing in the whole model without a word."""
    (hooks,) = CreateHookLoraModelOnly().create_hook_model_only(small.files[0], 1.0)
    positive = [[tokens, {**extra, "hooks": hooks}] for tokens, extra in small.graph.positive]
    blend, _, _ = small.mixture("mixed")
    with pytest.raises(ValueError, match="a prompt carries a LoRA hook"):
        small.graph.blended(small.model, blend, **{**small.inputs, "positive": positive})
    small.graph.blended(small.model, small.graph.blend(small.files), **{**small.inputs, "positive": positive})


# --- traces


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fault", [interrupt, fail])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_any_stage_leaves_nothing_on_either_model(small, untouched, stage, fault, before):
    blend, _, _ = small.mixture("mixed", 1.3)
    expected = small.graph.blended(small.model, blend, **small.inputs)
    calls = []

    def act():
        calls.append(stage)
        if len(calls) == 2 or stage in STAGES[:3]:  # where a stage comes often: at the whole model's pass
            fault()

    model = wrapped(small.graph.applied(small.model, blend), stage, act, before)
    with pytest.raises((comfy.model_management.InterruptProcessingException, ValueError)):
        small.graph.plain(model, **small.inputs)
    assert small.tuned.model.current_patcher is None
    model.remove_wrappers_with_key(stage, "test")
    assert torch.equal(small.graph.plain(model, **small.inputs), expected)


def test_plain_runs_of_both_models_are_bit_identical_afterwards(small, untouched):
    plain = [small.graph.plain(model, **small.inputs) for model in (small.model, small.tuned)]
    small.graph.blended(small.model, small.mixture("mixed")[0], **small.inputs)
    for model, expected in zip((small.model, small.tuned), plain, strict=True):
        assert torch.equal(small.graph.plain(model, **small.inputs), expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_models_unloaded_between_two_steps_are_no_fault(small, untouched, execution):
    blend, _, _ = small.mixture("mixed")
    model = wrapped(small.model, WrappersMP.PREDICT_NOISE, comfy.model_management.unload_all_models, before=False)
    expected = small.graph.blended(small.model, blend, execution, **small.inputs)
    assert torch.equal(small.graph.blended(model, blend, execution, **small.inputs), expected)


def test_fifty_runs_let_nothing_grow(small, untouched):
    """Every run is a graph of its own, with a LoRA in the whole model."""
    inputs = {**small.inputs, "steps": 1, "cfg": 1.0}
    (model,) = LoraLoaderModelOnly().load_lora_model_only(small.tuned, small.files[0], 1.0)

    def run(number):
        bases = [small.graph.whole(model), small.files[1]]
        blend = small.graph.blend(bases, f"{1 + number % 7}, {1 + number % 5}", alignment=1.0 + number % 3)
        small.graph.blended(small.model, blend, EXECUTIONS[number % 3], **inputs)

    for number in range(15):
        run(number)
    objects, memory = alive(), resident_bytes()
    for number in range(35):
        run(number)
    assert alive() == objects
    assert resident_bytes() - memory < 16 * 2**20
    comfy.model_management.unload_all_models()


def test_a_dropped_copy_frees_its_weights(small):
    (model,) = LoraLoaderModelOnly().load_lora_model_only(small.model, small.files[0], 1.0)

    def run():
        blend = small.graph.blend([small.graph.whole(model, own_copy=True)])
        return small.graph.blended(small.model, blend, **small.inputs)

    first = run()
    gc.collect()
    counts = []
    for _ in range(4):
        assert torch.equal(run(), first)
        gc.collect()
        counts.append(sum(type(o) is type(small.model.model) for o in gc.get_objects()))
    assert all(count == after for count, after in pairwise(counts))
