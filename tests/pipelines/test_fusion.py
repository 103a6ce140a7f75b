"""MSDDA on diffusers: equal eta is the blended DDIM run, different eta the fusion of separate models' steps."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from diffusion_blend.blend_core import Blend, BlendError, LoRABank
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.pipelines import BlendEvaluation, Sampling, fused, generate, load_factors

from ..lora_files import merged, random_lora, write_lora
from .worlds import tiny_autoencoder, tiny_flux, tiny_pipeline, tiny_sd3

BLEND = Blend(("first", "second"), (0.6, 0.4), 0.8)
ETAS = (0.9, 1.0, 0.4)  # base first
PROMPTS, SEEDS, STEPS = ["a red circle", "a blue square"], [7, 8], 5
PIXELS = 2e-4  # of [0, 1], as in test_generation.py
FP32 = 1e-4  # relative, of latents: the LoRAs are added after a layer here and merged into it there


class Studio:
    """A pipeline, the factors of two random LoRAs, and copies of its network with each merged, base first."""

    def __init__(self, pipe, folder):
        self.pipe, self.network = pipe, getattr(pipe, "unet", None) or pipe.transformer
        loras = [random_lora(self.network, seed, size=0.02) for seed in (21, 22)]
        files = [write_lora(folder / f"{i}.safetensors", lora) for i, lora in enumerate(loras)]
        self.factors, _ = load_factors(pipe, files)
        self.copies = [self.network, *(merged(self.network, (1.0, lora)) for lora in loras)]

    def images(self, name, sampling, blend=BLEND, **etas):
        return generate(self.pipe, BlendEvaluation.of(name, blend, self.factors, **etas), PROMPTS, SEEDS, sampling)

    def latents(self, execution="sequential", etas=ETAS, **inputs):
        """What the pipeline makes while MSDDA is on."""
        plan, streams = exact(BLEND.coefficients, STEPS, SEEDS), generators()
        with fused(self.pipe, LoRABank(self.factors), plan, etas, streams, execution), torch.no_grad():
            return self.pipe(num_inference_steps=STEPS, generator=streams, output_type="latent", **inputs).images


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def noise(streams, shape):
    return torch.stack([torch.randn(shape, generator=generator) for generator in streams])


@pytest.fixture(params=["epsilon", "v_prediction"])
def studio(request, tmp_path):
    return Studio(with_scheduler(tiny_pipeline(), prediction_type=request.param), tmp_path)


def with_scheduler(pipe, **settings):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **settings)
    return pipe


def assert_close(actual, expected, tolerance):
    distance = float((actual - expected).abs().max())
    assert distance < tolerance, f"largest difference {distance:.1e}"


def assert_latents(actual, expected):
    assert actual.shape == expected.shape
    assert_close(actual, expected, FP32 * float(expected.abs().max()))


@pytest.mark.parametrize(("eta", "cfg"), [(0.4, 2.0), (1.0, 1.0)])
@pytest.mark.parametrize("to_one", [False, True])  # the last step ends with a little noise, or with none
def test_with_equal_eta_it_is_the_blended_ddim_run(studio, eta, cfg, to_one):
    with_scheduler(studio.pipe, set_alpha_to_one=to_one)
    blended = studio.images("exact", Sampling(STEPS, eta, cfg))
    together = studio.images("msdda", Sampling(STEPS, cfg=cfg), etas=(eta, eta), base_eta=eta)
    assert_close(together, blended, PIXELS)
    assert (blended - studio.images("base", Sampling(STEPS, eta, cfg))).abs().max() > 10 * PIXELS


@pytest.mark.parametrize("spacing", [{"steps_offset": 0}, {"timestep_spacing": "trailing"}])
def test_schedules_whose_last_step_has_no_length_and_others_are_ddims_too(studio, spacing):
    with_scheduler(studio.pipe, **spacing)
    blended = studio.images("exact", Sampling(STEPS, 1.0, 2.0))
    assert_close(studio.images("msdda", Sampling(STEPS, cfg=2.0)), blended, PIXELS)


def test_a_schedule_that_starts_from_pure_noise(tmp_path):
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    studio = Studio(with_scheduler(tiny_pipeline(), **settings), tmp_path)
    blended = studio.images("exact", Sampling(STEPS, 1.0, 2.0))
    assert_close(studio.images("msdda", Sampling(STEPS, cfg=2.0)), blended, PIXELS)


@pytest.mark.parametrize("execution", ["sequential", "batched"])
@pytest.mark.parametrize("to_one", [False, True])
def test_with_unlike_eta_it_is_the_fusion_of_separate_models_steps(studio, execution, to_one):
    with_scheduler(studio.pipe, set_alpha_to_one=to_one)
    expected = ddim_by_hand(studio, ETAS, cfg=2.0)
    inputs = {"prompt": PROMPTS, "guidance_scale": 2.0}
    assert_latents(studio.latents(execution, **inputs), expected)
    same = studio.latents(etas=(1.0, 1.0, 1.0), **inputs)
    assert (same - expected).abs().max() > 100 * FP32


def ddim_by_hand(studio, etas, cfg):
    """DDIM's equations 12 and 16 (arXiv 2010.02502) for every model, then the product of their Gaussians."""
    pipe, streams = studio.pipe, generators()
    text, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(STEPS)
    abars = [scheduler.alphas_cumprod[t].double() for t in scheduler.timesteps] + [scheduler.final_alpha_cumprod]
    x = noise(streams, (4, 8, 8)).double()
    for t, (now, after) in zip(scheduler.timesteps, pairwise(abars), strict=True):
        parts = []
        for copy, c, eta in zip(studio.copies, BLEND.coefficients, etas, strict=True):
            with torch.no_grad():
                unguided, guided = (copy(x.float(), t, states).sample.double() for states in (empty, text))
            output = unguided + cfg * (guided - unguided)
            if scheduler.config.prediction_type == "v_prediction":
                output = now**0.5 * output + (1 - now) ** 0.5 * x
            denoised = (x - (1 - now) ** 0.5 * output) / now**0.5
            variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
            mean = after**0.5 * denoised + (1 - after - variance) ** 0.5 * output
            parts.append((c / (variance if after < 1 else eta**2), mean))
        precision = sum(weight for weight, _ in parts)
        x = sum(weight * mean for weight, mean in parts) / precision
        if after < 1:
            x = x + noise(streams, (4, 8, 8)) / precision**0.5
    return x.float()


def sd3(shift):
    """A pipeline without text encoders, and its call's inputs for two images of 8 x 8 latents."""
    pipe = StableDiffusion3Pipeline(
        tiny_sd3(), FlowMatchEulerDiscreteScheduler(shift=shift), tiny_autoencoder(4), *[None] * 6
    )
    texts, pooled = noise(generators(), (5, 16)), noise(generators(), (12,))
    inputs = {"prompt_embeds": texts, "pooled_prompt_embeds": pooled, "height": 16, "width": 16}
    return pipe, inputs | {"negative_prompt_embeds": -texts, "negative_pooled_prompt_embeds": -pooled}


def flux():
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), tiny_autoencoder(2), *[None] * 4, tiny_flux())
    texts, pooled = noise(generators(), (5, 16)), noise(generators(), (12,))
    return pipe, {"prompt_embeds": texts, "pooled_prompt_embeds": pooled, "height": 16, "width": 16}


def flow_by_hand(studio, etas, shape, predict):
    """Ancestral steps of rectified flow for every model, then the product of their Gaussians."""
    streams = generators()
    x = predict.start(noise(streams, shape))
    sigmas = studio.pipe.scheduler.sigmas.double().tolist()
    for now, after in pairwise(sigmas):
        parts = []
        for copy, c, eta in zip(studio.copies, BLEND.coefficients, etas, strict=True):
            denoised = x - now * predict(copy, x, now)
            down = after * (1 + (after / now - 1) * eta)
            shrink = (1 - after) / (1 - down)
            mean = shrink * (down / now * x + (1 - down / now) * denoised)
            parts.append((c / (after**2 - (down * shrink) ** 2 if after > 0 else eta * (2 - eta)), mean))
        precision = sum(weight for weight, _ in parts)
        x = sum(weight * mean for weight, mean in parts) / precision
        if after > 0:
            x = x + noise(streams, x.shape[1:]) / precision**0.5
    return x


class SD3Prediction:
    """The guided velocity of SD3."""

    start = staticmethod(lambda x: x)

    def __init__(self, inputs, cfg):
        self.inputs, self.cfg = inputs, cfg

    def __call__(self, copy, x, sigma):
        unguided, guided = (
            copy(x, self.inputs[f"{sign}prompt_embeds"], self.inputs[f"{sign}pooled_prompt_embeds"],
                 torch.full((2,), 1000.0 * sigma)).sample
            for sign in ("negative_", "")
        )  # fmt: skip
        return unguided + self.cfg * (guided - unguided)


class FluxPrediction:
    """The velocity of Flux, on packed latents."""

    def __init__(self, inputs):
        self.inputs = inputs

    def start(self, x):
        return FluxPipeline._pack_latents(x, 2, 2, 8, 8)

    def __call__(self, copy, x, sigma):
        ids = FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        return copy(
            x, self.inputs["prompt_embeds"], self.inputs["pooled_prompt_embeds"], torch.full((2,), sigma),
            img_ids=ids, txt_ids=torch.zeros(5, 3),
        ).sample  # fmt: skip


@pytest.mark.parametrize("shift", [1.0, 3.0])
@torch.no_grad()
def test_sd3_takes_the_fused_flow_step(tmp_path, shift):
    pipe, inputs = sd3(shift)
    pipe.set_progress_bar_config(disable=True)
    studio = Studio(pipe, tmp_path)
    latents = studio.latents(**inputs, guidance_scale=3.0)
    assert_latents(latents, flow_by_hand(studio, ETAS, (4, 8, 8), SD3Prediction(inputs, 3.0)))
    assert (latents - studio.latents(etas=(1.0,) * 3, **inputs, guidance_scale=3.0)).abs().max() > 100 * FP32


@torch.no_grad()
def test_flux_takes_the_fused_flow_step(tmp_path):
    pipe, inputs = flux()
    pipe.set_progress_bar_config(disable=True)
    studio = Studio(pipe, tmp_path)
    latents = studio.latents("batched", **inputs)
    assert_latents(latents, flow_by_hand(studio, ETAS, (2, 8, 8), FluxPrediction(inputs)))


def test_a_batch_is_its_images_one_by_one(studio):
    evaluation = BlendEvaluation.of("msdda", BLEND, studio.factors, (1.0, 0.4))
    both = generate(studio.pipe, evaluation, PROMPTS, SEEDS, Sampling(STEPS, cfg=2.0))
    for i in range(2):
        single_run = generate(studio.pipe, evaluation, [PROMPTS[i]], [SEEDS[i]], Sampling(STEPS, cfg=2.0))
        assert_close(single_run[0], both[i], PIXELS)


def test_network_and_scheduler_are_as_found_even_after_an_error(studio):
    before = studio.images("exact", Sampling(STEPS, 1.0, 2.0))
    plan = exact(BLEND.coefficients, STEPS, SEEDS)
    with pytest.raises(KeyboardInterrupt), fused(studio.pipe, LoRABank(studio.factors), plan, ETAS, generators()):
        raise KeyboardInterrupt
    studio.latents(prompt=PROMPTS, guidance_scale=2.0)
    assert "step" not in studio.pipe.scheduler.__dict__ and "forward" not in studio.network.__dict__
    assert torch.equal(studio.images("exact", Sampling(STEPS, 1.0, 2.0)), before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msdda", {"etas": (1.0,)}, "1 etas came for 2 reward LoRAs"),
        ("msdda", {"etas": (1.0, 0.0)}, "expected above 0 and up to 1"),
        ("msdda", {"base_eta": 1.5}, "expected above 0 and up to 1"),
        ("exact", {"etas": (1.0, 0.5)}, "which fuses no steps"),
    ],
)
def test_etas_that_cannot_be_are_refused(studio, name, options, message):
    with pytest.raises(BlendError, match=message):
        studio.images(name, Sampling(STEPS), **options)


def test_schedulers_whose_step_is_no_known_gaussian_are_refused(studio):
    with pytest.raises(BlendError, match="but msdda has one per basis"):
        studio.images("msdda", Sampling(STEPS, eta=0.5))
    with_scheduler(studio.pipe, clip_sample=True)
    with pytest.raises(BlendError, match="clip_sample on"):
        studio.images("msdda", Sampling(STEPS))
    studio.pipe.scheduler = EulerDiscreteScheduler.from_config(studio.pipe.scheduler.config)
    with pytest.raises(BlendError, match="samples with EulerDiscreteScheduler"):
        studio.images("msdda", Sampling(STEPS))
