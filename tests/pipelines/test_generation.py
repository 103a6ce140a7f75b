"""Whole pictures: a tiny Stable Diffusion pipeline, sampled with every evaluation."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusion_blend.blend_core import Blend, BlendError
from diffusion_blend.pipelines import PIPELINE_EVALUATIONS, BlendEvaluation, Sampling, generate, load_base, load_factors

from ..lora_files import merged, random_lora, write_lora
from .worlds import tiny_pipeline

PROMPTS = ["a red circle", "a blue square", "a red square"]
SEEDS = [7, 8, 9]
SAMPLING = Sampling(steps=6, eta=1.0, cfg=2.0)
BLEND = Blend(("first", "second"), (0.6, 0.4))
# Pixels in [0, 1]: float32 rounds otherwise in other batch shapes, and six steps of random weights carry it on.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """(pipeline, the two LoRAs, their files)."""
    folder = tmp_path_factory.mktemp("loras")
    pipe = tiny_pipeline()
    loras = [random_lora(pipe.unet, seed, size=0.02) for seed in (21, 22)]
    files = [write_lora(folder / f"{name}.safetensors", lora) for name, lora in zip(BLEND.names, loras, strict=True)]
    return pipe, loras, files


def images(studio, name, blend=BLEND, prompts=PROMPTS, seeds=SEEDS, sampling=SAMPLING):
    pipe, _, files = studio
    factors, _ = load_factors(pipe, files)
    return generate(pipe, BlendEvaluation.of(name, blend, factors), prompts, seeds, sampling)


def assert_close(actual, expected):
    distance = (actual - expected).abs().max()
    assert distance < TOLERANCE, f"largest difference of a pixel {distance:.1e}"


def assert_differ(actual, expected):
    assert (actual - expected).abs().max() > 10 * TOLERANCE


def test_images_are_in_range_and_repeat_bit_for_bit(studio):
    first = images(studio, "exact")
    assert first.shape == (3, 3, 16, 16)
    assert first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, images(studio, "exact"))
    assert_differ(first, images(studio, "exact", seeds=[17, 18, 19]))
    assert_differ(first, images(studio, "base"))


@pytest.mark.parametrize("name", ["exact", "stratified", "random", "merged", "base"])
def test_a_batch_is_its_images_one_by_one(studio, name):
    batch = images(studio, name)
    for i in range(3):
        assert_close(images(studio, name, prompts=[PROMPTS[i]], seeds=[SEEDS[i]])[0], batch[i])


def test_batched_execution_gives_the_sequential_pictures(studio):
    batched = Sampling(steps=6, eta=1.0, cfg=2.0, execution="batched")
    assert_close(images(studio, "exact", sampling=batched), images(studio, "exact"))


def test_guidance_off_is_blended_too(studio):
    plain = Sampling(steps=6, eta=1.0, cfg=1.0)
    assert_differ(images(studio, "exact", sampling=plain), images(studio, "base", sampling=plain))


@pytest.mark.parametrize("name", ["exact", "stratified", "random"])
def test_choices_leave_the_samplers_noise_alone(studio, name):
    """With one basis only there is nothing to choose: each estimator gives that basis' picture from the same noise."""
    blend = Blend(("first", "second"), (1.0, 0.0))
    assert torch.equal(images(studio, name, blend), images(studio, "exact", blend))


def test_alignment_zero_is_the_base_bit_for_bit(studio):
    for name in ("exact", "stratified", "random", "merged"):
        assert torch.equal(images(studio, name, BLEND.aligned(0)), images(studio, "base"))


@pytest.mark.parametrize("name", [name for name in PIPELINE_EVALUATIONS if name != "base"])
def test_until_1_changes_nothing_and_until_0_is_the_base(studio, name):
    pipe, _, files = studio
    factors, _ = load_factors(pipe, files)
    sampling = Sampling(SAMPLING.steps, 0.0 if name == "msdda" else SAMPLING.eta, SAMPLING.cfg)

    def made(until, evaluation=name):
        return generate(pipe, BlendEvaluation.of(evaluation, BLEND, factors, until=until), PROMPTS, SEEDS, sampling)

    assert torch.equal(made(1.0), generate(pipe, BlendEvaluation.of(name, BLEND, factors), PROMPTS, SEEDS, sampling))
    if name != "msdda":  # which has noise of its own
        assert_close(made(0.0), made(1.0, "base"))


@pytest.mark.parametrize("name", ["exact", "merged", "stratified", "budget", "msdda"])
def test_the_last_steps_after_until_ask_for_the_base_alone(studio, name):
    pipe, _, files = studio
    factors, _ = load_factors(pipe, files)
    plan = BlendEvaluation.of(name, BLEND, factors, until=0.75).plan(20, SEEDS)
    assert [plan.active(step)[0].unique().tolist() for step in range(15, 20)] == [[0]] * 5
    assert all(0 not in plan.active(step)[0] for step in range(1, 15))


@pytest.mark.parametrize("execution", ["sequential", "batched"])
def test_merged_is_the_model_with_all_loras_merged_into_its_weights(studio, execution):
    pipe, (first, second), _ = studio
    sampling = Sampling(steps=6, eta=1.0, cfg=2.0, execution=execution)
    came = images(studio, "merged", BLEND.aligned(1.2), sampling=sampling)
    base = pipe.unet
    pipe.unet = merged(base, (0.72, first), (0.48, second))
    try:
        expected = images(studio, "base", sampling=sampling)
    finally:
        pipe.unet = base
    assert_close(came, expected)
    assert_differ(came, images(studio, "exact", BLEND.aligned(1.2)))


def test_one_variant_per_step_refuses_extrapolation_and_unknown_evaluations_are_named(studio):
    for name in ("random", "stratified"):
        with pytest.raises(BlendError, match="Lower alignment to 1 or less"):
            images(studio, name, BLEND.aligned(1.5))
    with pytest.raises(BlendError, match="evaluation is 'best', expected one of exact"):
        images(studio, "best")


def test_the_pipeline_makes_base_pictures_again_afterwards(studio):
    before = images(studio, "base")
    images(studio, "stratified")
    assert torch.equal(images(studio, "base"), before)


def test_a_saved_base_gets_a_ddim_scheduler_so_that_eta_counts(studio, tmp_path):
    pipe = studio[0]
    ddim = pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(ddim.config)
    pipe.save_pretrained(tmp_path / "base")
    pipe.scheduler = ddim
    loaded = load_base(str(tmp_path / "base"))
    assert loaded.scheduler.config.beta_start == ddim.config.beta_start
    zero, one = (
        generate(loaded, BlendEvaluation.of("base", BLEND, []), PROMPTS, SEEDS, Sampling(6, eta, 2.0))
        for eta in (0.0, 1.0)
    )
    assert_differ(zero, one)


def test_a_folder_that_is_no_model_and_a_checkpoint_without_config_say_what_to_do(tmp_path):
    with pytest.raises(BlendError, match=r"cannot be opened as a base model.*model_index\.json"):
        load_base(str(tmp_path))
    checkpoint = tmp_path / "model.safetensors"
    with pytest.raises(BlendError, match="is no file"):
        load_base(str(checkpoint))
    checkpoint.write_bytes(b"0")
    with pytest.raises(BlendError, match="Give --config"):
        load_base(str(checkpoint))
    with pytest.raises(BlendError, match=r"has no model_index\.json"):
        load_base(str(checkpoint), config=str(tmp_path))


class FlowPipeline:
    """The call of a pipeline whose sampler has no eta."""

    def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type):
        """Never reached."""


def test_an_eta_that_would_be_ignored_is_refused():
    assert Sampling(eta=0.0).options_for(FlowPipeline()) == {"num_inference_steps": 30, "guidance_scale": 7.5}
    with pytest.raises(BlendError, match="FlowPipeline takes none"):
        Sampling(eta=0.5).options_for(FlowPipeline())


def test_a_budget_remembers_repeats_and_comes_near_exact(studio):
    exact = images(studio, "exact")
    result = images(studio, "budget")
    assert torch.equal(result, images(studio, "budget"))
    assert not torch.equal(result, exact)
    assert (result - exact).square().mean() < (images(studio, "base") - exact).square().mean() / 4


def test_a_budget_of_all_rewards_is_exact_whatever_the_network_predicts(studio):
    pipe, _, files = studio
    factors, _ = load_factors(pipe, files)
    evaluation = BlendEvaluation.of("budget", BLEND, factors, evaluations=2.0)
    assert_close(generate(pipe, evaluation, PROMPTS, SEEDS, SAMPLING), images(studio, "exact"))
    former = pipe.scheduler.config.prediction_type
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    try:
        assert_close(generate(pipe, evaluation, PROMPTS, SEEDS, SAMPLING), images(studio, "exact"))
    finally:
        pipe.scheduler.register_to_config(prediction_type=former)


def test_a_budget_for_an_evaluation_that_has_none(studio):
    pipe, _, files = studio
    with pytest.raises(BlendError, match="a budget came for the evaluation stratified"):
        BlendEvaluation.of("stratified", BLEND, load_factors(pipe, files)[0], evaluations=1.5)


def test_a_budget_needs_a_scheduler_whose_noise_levels_are_known(studio):
    pipe, _, _ = studio
    former, pipe.scheduler = pipe.scheduler, EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    try:
        with pytest.raises(BlendError, match="samples with EulerDiscreteScheduler"):
            images(studio, "budget", sampling=Sampling(steps=4, eta=0.0, cfg=2.0))
    finally:
        pipe.scheduler = former
