"""What cannot work is refused before anything is sampled, with a message that says what to do."""

import comfy.sampler_helpers
import pytest
import torch

from . import host, loras


@pytest.fixture(autouse=True)
def no_sampling(monkeypatch):
    """A refusal comes before the model is loaded."""

    def prepare(*_, **__):
        raise AssertionError("sampling began")

    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", prepare)


@pytest.fixture
def error():
    """The exception a user meets."""
    return host.submodule("blend_core").BlendError


def test_a_blend_without_a_lora(graph, error):
    for weights in ("", "0.5, 0.5"):
        with pytest.raises(error, match="Connect"):
            graph.blend([], weights)


@pytest.mark.parametrize(
    ("weights", "advice"),
    [
        ("-1, 2", "normalise off in Blend Weights"),
        ("0.5, 0.3, 0.2", "one weight per reward LoRA"),
        ("1", "one weight per reward LoRA"),
        ("0, 0", "at least one above 0"),
        ("nan, 1", "expected numbers from 0 upwards"),
        ("half, half", "Write one number per reward LoRA"),
    ],
)
def test_weights_that_make_no_blend(graph, files, error, weights, advice):
    with pytest.raises(error, match=advice):
        graph.blend(files[:2], weights)


def test_weights_that_sum_to_0_are_refused_without_normalising_too(graph, files, error):
    with pytest.raises(error, match="alignment to 0"):
        graph.blend(files[:2], "0, 0", normalise=False)


def test_a_target_kl_weight_for_loras_that_state_none(graph, files, error):
    with pytest.raises(error, match="Type it where the LoRA is loaded"):
        graph.blended(None, graph.blend(files[:2], target_kl_weight=0.5))


SDXL = loras.Layer(
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "input_blocks.4.1.transformer_blocks", (640, 2048)
)
FLUX = loras.Layer("transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv", (3072, 3072))


@pytest.mark.parametrize(
    ("layer", "write", "named"),
    [(SDXL, loras.write_kohya, "SDXL"), (FLUX, loras.write_transformer, "Flux")],
    ids=["SDXL", "Flux"],
)
def test_a_lora_of_another_base(graph, base, lora_folder, error, layer, write, named):
    file = write(loras.random_lora(f"foreign_{named}", [layer], rank=2, alpha=2.0, seed=4), lora_folder)
    blend = graph.blend([file])
    with pytest.raises(error, match=named) as caught:
        graph.blended(base, blend)
    assert "SD 1.5" in str(caught.value)
    with pytest.raises(error, match=named):
        graph.applied(base, blend)


def test_a_lora_of_another_shape_at_a_name_that_exists(graph, base, lora_folder, error):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = loras.Layer(name, "input_blocks.1.1.transformer_blocks.0.attn2.to_k", (640, 2048))
    file = loras.write_kohya(loras.random_lora("foreign_width", [layer], rank=2, alpha=2.0, seed=4), lora_folder)
    with pytest.raises(error, match="SDXL"):
        graph.blended(base, graph.blend([file]))


def test_a_blended_model_blended_again(graph, base, files, error):
    model = graph.applied(base, graph.blend(files))
    for refused in (graph.applied, graph.blended):
        with pytest.raises(error, match="Put all reward LoRAs into one Blend Weights node"):
            refused(model.clone(), graph.blend(files))


@pytest.mark.parametrize("weights", ["0.5, -0.5", "1.2, 0", "-10, 10"])
@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_weights_as_they_are_that_are_no_probabilities_of_one_basis_per_step(
    graph, base, files, error, evaluation, weights
):
    blend = graph.blend(files[:2], weights, normalise=False)
    with pytest.raises(error, match=r"none below 0, .* choose budget, .* 0 or more and sum to at most 1"):
        graph.applied(base, blend, evaluation=evaluation)
    with pytest.raises(error, match="choose budget"):
        graph.stochastic(base, blend, evaluation)


def test_weights_below_0_are_shares_of_nothing_before_anything_runs(nodes, error):
    check = nodes["BlendWeights"].validate_inputs
    assert check(weights="1, -1", normalise=False) is True
    assert check(weights="1, -1") is True, "a link brings normalise, so that the run decides"
    with pytest.raises(error, match="normalise off"):
        check(weights="1, -1", normalise=True)


@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_one_basis_per_step_beyond_alignment_1(graph, base, files, error, evaluation):
    blend = graph.blend(files, alignment=1.6)
    with pytest.raises(error, match="Lower alignment to 1"):
        graph.applied(base, blend, evaluation=evaluation)
    with pytest.raises(error, match="Lower alignment to 1"):
        graph.stochastic(base, blend)


def test_a_budget_below_one(graph, base, files, error):
    with pytest.raises(error, match="expected 1 or more"):
        graph.applied(base, graph.blend(files), evaluation="budget", budget=0.5)


def test_a_file_that_is_gone(nodes, error):
    with pytest.raises(error, match="not in models/loras"):
        nodes["LoadRewardLoRA"].validate_inputs(lora_name="gone.safetensors")


def test_a_file_that_is_no_lora(graph, lora_folder, error):
    loras.save({"model.diffusion_model.out.2.weight": torch.zeros(4, 4)}, lora_folder, "checkpoint.safetensors")
    with pytest.raises(error, match="load it as a model"):
        graph.blend(["checkpoint.safetensors"])


def test_a_cache_that_nobody_else_reaches(graph, base, files, error):
    def wrapper(apply_model, call):
        return apply_model(call["input"], call["timestep"], **call["c"])

    wrapper.__module__ = "/models/ComfyUI/custom_nodes/Comfy-WaveSpeed.fbcache_nodes"  # as ComfyUI names it
    model = graph.applied(base, graph.blend(files))
    model.set_model_unet_function_wrapper(wrapper)
    with pytest.raises(error, match=r"Apply First Block Cache \(WaveSpeed\) keeps one"):
        graph.plain(model)
