"""The diffusers host at the level of one network call: UNet, SD3 and Flux."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from diffusion_blend.blend_core import Blend, BlendError, LoRABank, Plan, read_adapter, resolve
from diffusion_blend.blend_core.estimators import exact, random
from diffusion_blend.pipelines import blended, network_of, target_index

from ..lora_files import merged, random_lora, write_lora
from .worlds import NETWORKS, tiny_autoencoder, tiny_flux, tiny_pipeline, tiny_sd3, tiny_unet, unet_inputs

BLEND = Blend(("first", "second"), (0.6, 0.4), alignment=0.7)
TOLERANCE = 1e-5  # relative, float32: the delta is added after the layer instead of into its weight


class World:
    """A network, two random LoRAs read back from files, and one call's inputs for two images under guidance."""

    def __init__(self, name, folder):
        build, self.inputs_of = NETWORKS[name]
        self.network = build()
        self.loras = [random_lora(self.network, seed) for seed in (11, 12)]
        index = target_index(self.network)
        files = [write_lora(folder / f"{i}.safetensors", lora) for i, lora in enumerate(self.loras)]
        self.bank = LoRABank([resolve(read_adapter(file), index)[0] for file in files])
        self.inputs = self.inputs_of(4)

    def variant(self, i):
        """The prediction of the base (0), or of a copy with LoRA i merged into its weights."""
        network = self.network if i == 0 else merged(self.network, (1.0, self.loras[i - 1]))
        return call(network, self.inputs)

    def blended(self, plan, execution="sequential"):
        with blended(self.network, self.bank, plan, execution):
            return call(self.network, self.inputs)


@pytest.fixture(params=list(NETWORKS))
def world(request, tmp_path):
    return World(request.param, tmp_path)


def call(network, inputs):
    with torch.no_grad():
        return network(**inputs).sample


def assert_close(actual, expected, tolerance=TOLERANCE):
    distance = (actual - expected).norm() / expected.norm()
    assert distance < tolerance, f"relative distance {distance:.2e}"


@pytest.mark.parametrize("execution", ["sequential", "batched"])
def test_exact_blend_is_the_weighted_sum_of_merged_copies(world, execution):
    expected = sum(c * world.variant(i) for i, c in enumerate(BLEND.coefficients))
    assert_close(world.blended(exact(BLEND.coefficients, 3, [0, 1]), execution), expected)
    assert (expected - world.variant(0)).norm() / expected.norm() > 1e-2  # the LoRAs do something here


def test_one_variant_per_image_takes_that_images_variant_in_every_group_of_rows(world):
    plan = random(BLEND.coefficients, 1, [5, 8])
    choices = plan.variants[0, 0].tolist()
    assert len(set(choices)) == 2  # these seeds make the two images differ
    variants = [world.variant(choice) for choice in choices]
    expected = torch.stack([variants[row % 2][row] for row in range(4)])
    assert_close(world.blended(plan), expected)


def test_one_hot_coefficients_are_that_basis_bit_for_bit(world):
    for i, coefficients in enumerate([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]):
        blend = world.blended(exact(coefficients, 1, [0, 1]))
        with world.bank.attach(world.network).using([i] * 4):
            single_run = call(world.network, world.inputs)
        assert torch.equal(blend, single_run)


def test_alignment_zero_is_the_base_bit_for_bit(world):
    coefficients = BLEND.aligned(0).coefficients
    assert torch.equal(world.blended(exact(coefficients, 1, [0, 1])), world.variant(0))


def test_network_is_as_found_afterwards_even_after_an_error(world):
    before = copy.deepcopy(world.network.state_dict())
    prediction = world.variant(0)
    plan = exact(BLEND.coefficients, 1, [0, 1])
    with pytest.raises(KeyboardInterrupt), blended(world.network, world.bank, plan):
        call(world.network, world.inputs)
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), blended(world.network, world.bank, plan):
        call(world.network, {**world.inputs, "encoder_hidden_states": torch.zeros(4, 5, 3)})
    assert all("forward" not in module.__dict__ for module in world.network.modules())
    assert all(torch.equal(before[name], value) for name, value in world.network.state_dict().items())
    assert torch.equal(world.variant(0), prediction)


def test_another_packs_forward_is_called_and_put_back(world):
    calls, forward = [], world.network.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    world.network.forward = counted
    world.blended(exact(BLEND.coefficients, 1, [0, 1]))
    assert len(calls) == 3
    assert world.network.forward is counted


def test_tuples_and_positional_arguments_are_understood(world):
    plan = exact(BLEND.coefficients, 1, [0, 1])
    expected = world.blended(plan)
    first, *rest = world.inputs.items()
    with blended(world.network, world.bank, plan), torch.no_grad():
        output = world.network(first[1], **dict(rest), return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], expected)


def test_a_step_lasts_as_long_as_its_timestep_and_a_higher_one_starts_again(tmp_path):
    world = World("unet", tmp_path)
    plan = random((0.0, 0.5, 0.5), 4, [3])
    choices = plan.variants[:, 0, 0].tolist()
    assert len(set(choices)) == 2
    seen, references = [], {}
    for i in (1, 2):
        with world.bank.attach(world.network).using([i]):
            references[i] = {t: call(world.network, at(world.inputs, t)) for t in (900, 700, 500, 300)}
    with blended(world.network, world.bank, plan):
        for t in (900, 900, 700, 500, 500, 300, 900, 700):
            out = call(world.network, at(world.inputs, t))
            seen.append(next(i for i in (1, 2) if torch.equal(out, references[i][t])))
    a, b, c, d = choices
    assert seen == [a, a, b, c, c, d, a, b]


def at(inputs, timestep):
    return {**{name: value[:1] for name, value in inputs.items() if value.dim()}, "timestep": timestep}


def test_added_conditions_in_dicts_are_repeated_with_the_rows(tmp_path):
    world = World("unet", tmp_path)
    residuals = [torch.randn(4, *shape, generator=torch.Generator().manual_seed(6)) for shape in RESIDUALS]
    world.inputs["down_block_additional_residuals"] = tuple(residuals)
    world.inputs["mid_block_additional_residual"] = torch.ones(4, 64, 4, 4)
    plan = exact(BLEND.coefficients, 1, [0, 1])
    assert_close(world.blended(plan, "batched"), world.blended(plan))


RESIDUALS = [(32, 8, 8), (32, 8, 8), (32, 4, 4), (64, 4, 4)]


def test_weights_are_applied_in_float32_to_a_half_precision_network(tmp_path):
    world = World("unet", tmp_path)
    world.network.to(torch.bfloat16)
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in world.inputs.items()}
    plan = exact((1 / 3, 1 / 3, 1 / 3), 1, [0, 1])
    empty = LoRABank([{}, {}])
    with blended(world.network, empty, plan):
        out = call(world.network, inputs)
    assert torch.equal(out, call(world.network, inputs))  # three times a third of the same prediction


def test_rows_that_fit_no_plan_and_nested_blends_are_refused(tmp_path):
    world = World("unet", tmp_path)
    with pytest.raises(BlendError, match="4 rows for a plan of 3 images"):
        world.blended(exact(BLEND.coefficients, 1, [0, 1, 2]))
    plan = exact(BLEND.coefficients, 1, [0, 1])
    with pytest.raises(BlendError, match="blended already"), blended(world.network, world.bank, plan):
        world.blended(plan)
    with pytest.raises(BlendError, match="execution is 'fast'"):
        world.blended(plan, "fast")


def test_a_lora_of_another_network_is_refused_by_name(tmp_path):
    world = World("unet", tmp_path)
    file = write_lora(tmp_path / "sd3.safetensors", random_lora(NETWORKS["sd3"][0](), 1))
    with pytest.raises(BlendError, match="Choose a LoRA trained on this model"):
        resolve(read_adapter(file), target_index(world.network))


def test_ldm_names_reach_a_unet_through_the_engines_renames():
    network = tiny_unet()
    index = target_index(network)
    (target,) = index.find("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")
    assert target.module == "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    (target,) = index.find("input_blocks.0.0")
    assert target.module == "conv_in"


def test_a_pipeline_without_a_network_is_refused():
    pipe = tiny_pipeline()
    assert network_of(pipe) is pipe.unet
    pipe.unet = None
    with pytest.raises(BlendError, match="no unet and no transformer"):
        network_of(pipe)


def test_the_callers_tensors_are_left_alone(tmp_path):
    world = World("unet", tmp_path)
    before = {name: value.clone() for name, value in unet_inputs(4).items()}
    world.blended(exact(BLEND.coefficients, 1, [0, 1]), "batched")
    assert all(torch.equal(before[name], value) for name, value in world.inputs.items())


class Recording(Plan):
    """The exact plan, keeping the denoised predictions that reach it."""

    needs_denoised = True

    def __call__(self, evaluate, step, images=None, call=None):
        variants, _ = self.active(step, images)
        self.__dict__.setdefault("seen", []).append(evaluate(variants)[0])
        return self.seen[-1]


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@torch.no_grad()
def test_flow_models_are_read_at_the_right_noise_level(monkeypatch, family, shift):
    """A constant velocity leads to one x0 from everywhere; Flux divides its timesteps by 1000, SD3 does not."""
    scheduler, texts, pooled = FlowMatchEulerDiscreteScheduler(shift=shift), torch.randn(1, 5, 16), torch.randn(1, 12)
    if family == "sd3":
        pipe = StableDiffusion3Pipeline(tiny_sd3(), scheduler, tiny_autoencoder(4), *[None] * 6)
    else:
        pipe = FluxPipeline(scheduler, tiny_autoencoder(2), *[None] * 4, tiny_flux())
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(
        type(pipe.transformer),
        "forward",
        lambda self, hidden_states, timestep=None, **_: (torch.ones_like(hidden_states),),
    )
    plan = Recording(torch.ones(4, 1, 1, dtype=torch.long), torch.ones(4, 1))
    with blended(pipe, LoRABank([{}]), plan):
        pipe(prompt_embeds=texts, pooled_prompt_embeds=pooled, height=16, width=16, num_inference_steps=4,
             guidance_scale=1.0, output_type="latent")  # fmt: skip
    first, *others = plan.seen
    assert len(others) == 3
    for later in others:
        torch.testing.assert_close(later, first, rtol=0, atol=1e-5)
