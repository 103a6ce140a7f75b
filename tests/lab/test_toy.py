"""The toy studio: its pictures, transition, rewards and shipped files."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from diffusion_blend.blend_core.rewards import jpeg_compressibility
from safetensors import safe_open

pytest.importorskip("diffusers")

from diffusion_blend.lab.toy import make
from diffusion_blend.lab.toy.align import Alignment, Policy, random_prompts, trained_steps
from diffusion_blend.lab.toy.data import BACKGROUNDS, COLOURS, WORDS, caption, draw, random_labels, words_of
from diffusion_blend.lab.toy.model import STUDIO, TEXT_LENGTH, build_scheduler, build_tokenizer, load_base
from diffusion_blend.lab.toy.rewards import _log_odds, jpeg_bits, toy_rewards
from diffusion_blend.lab.toy.rollout import Step, rollout, schedule
from diffusion_blend.lab.toy.scorer import accuracy, labels_of_prompt

LORAS = ("calm", "vivid", "faithful")
TINT = 0.12  # how far brightness (8%) and tint (0.03) can take a colour of a picture from its palette


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int = 0):
    labels = random_labels(count, seeded(seed))
    return labels, draw(labels, seeded(seed))


@pytest.fixture(scope="module")
def base():
    return load_base()


def test_drawing_depends_on_the_seed_alone():
    assert torch.equal(pictures(8)[1], pictures(8)[1])
    assert not torch.equal(pictures(8)[1], pictures(8, seed=1)[1])


def test_pictures_have_the_colours_their_captions_name():
    labels, images = pictures(64)
    assert images.shape == (64, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    for i, image in enumerate(images):
        words = words_of(labels, i)
        assert all(word in caption(words).split() for word in words.values())
        for colour in (COLOURS[words["colour"]], BACKGROUNDS[words["background"]]):
            distance = (image - torch.tensor(colour).view(3, 1, 1)).abs().amax(0)
            assert distance.min() < TINT, f"{caption(words)} has no pixel of its colour"


def test_plain_backgrounds_are_flat_and_patterned_ones_are_not():
    labels, images = pictures(256)
    corners = images[:, :, :3, :].flatten(2).std(-1).amax(1)  # the top rows: shapes seldom reach them
    plain = labels["texture"] == 0
    assert corners[plain].median() < 1e-6 < 0.03 < corners[~plain].median()


def test_captions_may_leave_parts_out_and_are_read_back():
    words = {"colour": "red", "shape": "cross", "background": "teal", "texture": "dotted"}
    assert caption(words) == "a red cross on a dotted teal background"
    assert caption(words, texture=False) == "a red cross on a teal background"
    assert caption(words, background=False) == "a red cross"
    assert labels_of_prompt(caption(words)) == {name: WORDS[name].index(word) for name, word in words.items()}


def test_every_caption_fits_and_has_no_unknown_word():
    tokenizer = build_tokenizer()
    labels = random_labels(200, seeded())
    tokens = tokenizer([caption(words_of(labels, i)) for i in range(200)], padding="max_length").input_ids
    assert {len(row) for row in tokens} == {TEXT_LENGTH}
    assert not any(tokenizer.unk_token_id in row for row in tokens)


def float64_schedule(steps: int, eta: float):
    scheduler = build_scheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler, schedule(scheduler, steps, eta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_transition_is_the_schedulers_step(eta):
    scheduler, levels = float64_schedule(20, eta)
    x, velocity, noise = torch.randn(3, 2, 16, 8, 8, dtype=torch.float64, generator=seeded())
    for level in levels:
        ours = level.mean(x, velocity) + level.sigma * noise
        variance_noise = noise if eta else None
        theirs = scheduler.step(velocity, level.timestep, x, eta=eta, variance_noise=variance_noise).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_every_step_has_a_likelihood():
    assert all(level.sigma > 0 for level in float64_schedule(20, 1.0)[1])


def test_kl_is_that_of_the_steps_gaussians():
    x, one, other = torch.randn(3, 4, 16, 8, 8, dtype=torch.float64, generator=seeded())
    for level in float64_schedule(20, 1.0)[1]:
        gaussians = [torch.distributions.Normal(level.mean(x, v), level.sigma.expand_as(x)) for v in (one, other)]
        expected = torch.distributions.kl_divergence(*gaussians).flatten(1).sum(1)
        torch.testing.assert_close(level.kl(x, one, other), expected, rtol=1e-9, atol=0)


def test_a_perfect_prediction_recovers_the_clean_latent():
    clean, noise = torch.randn(2, 2, 16, 8, 8, dtype=torch.float64, generator=seeded())
    a = torch.tensor(0.3, dtype=torch.float64)
    level = Step(0, a, a, a)
    x = a.sqrt() * clean + (1 - a).sqrt() * noise
    torch.testing.assert_close(level.x0(x, a.sqrt() * noise - (1 - a).sqrt() * clean), clean, rtol=0, atol=1e-12)


def test_weighted_steps_sum_to_the_path_on_average():
    settings, generator = Alignment(), seeded()
    totals = torch.zeros(settings.steps)
    draws = 4000
    for _ in range(draws):
        for k, weight in trained_steps(settings, generator):
            totals[k] += weight / draws
    count = settings.trained_steps - 1
    weight = (settings.steps - 1) / count
    deviation = (weight - 1) ** 0.5 / draws**0.5  # of a mean of weight * Bernoulli(1 / weight)
    assert (totals - 1).abs().max() < 5 * deviation


def test_jpeg_prefers_flat_pictures_and_its_surrogate_agrees():
    images = pictures(64)[1]
    noise = torch.rand(1, 3, 32, 32, generator=seeded())
    flat = torch.full((1, 3, 32, 32), 0.4)
    sizes = -jpeg_compressibility(torch.cat([images, noise, flat]))
    assert sizes[-1] < sizes[:-2].min() and sizes[-2] > sizes[:-2].max()
    correlation = torch.corrcoef(torch.stack([sizes[:-2], jpeg_bits(images)]))[0, 1]
    assert correlation > 0.95


def test_log_odds_are_those_of_the_probabilities():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(_log_odds(logits), torch.logit(logits.softmax(-1)))


def test_drawn_pictures_come_back_from_the_latent_space(base):
    images = pictures(64, seed=5)[1] * 2 - 1
    with torch.no_grad():
        error = (base.vae.decode(base.vae.encode(images).latent_dist.mean).sample - images).square().mean()
    assert 10 * torch.log10(4 / error) > 28  # dB


def test_the_judge_reads_what_the_base_was_asked_to_draw(base):
    prompts = random_prompts(32, seeded(9))
    images = base(prompts, num_inference_steps=20, guidance_scale=2.0, eta=1.0, generator=seeded(), output_type="pt")
    read = accuracy(make.judge(), images.images, prompts)
    assert read["colour"] >= 0.9 and read["shape"] >= 0.85, read  # 32 samples; training.json has the figures of more


def test_a_fresh_lora_is_the_base():
    policy = Policy(Alignment())
    prompts, x = ["a red circle"] * 2, policy.noise(2, seeded())
    predict, reference = policy.predictor(prompts), policy.reference_predictor(prompts)
    with torch.no_grad():
        assert torch.equal(predict(x, 500), reference(x, 500))


@pytest.mark.parametrize("name", LORAS)
def test_lora_files_are_well_formed(name, base):
    modules = {"lora_unet_" + path.replace(".", "_"): module for path, module in base.unet.named_modules()}
    with safe_open(STUDIO / "loras" / f"{name}.safetensors", "pt") as file:
        tensors, facts = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    assert len(tensors) % 3 == 0
    for key in (key for key in tensors if key.endswith(".lora_down.weight")):
        module = key.removesuffix(".lora_down.weight")
        down, up = tensors[key], tensors[f"{module}.lora_up.weight"]
        rank = down.shape[0]
        assert tensors[f"{module}.alpha"] == rank == up.shape[1] == int(facts["diffusion_blend.rank"])
        weight = modules[module].weight
        assert (up.shape[0], *down.shape[1:]) == tuple(weight.shape)
        assert down.isfinite().all() and up.isfinite().all()


@pytest.mark.parametrize("name", LORAS)
def test_lora_headers_name_their_reward_and_the_base_they_were_trained_on(name):
    with safe_open(STUDIO / "loras" / f"{name}.safetensors", "pt") as file:
        facts = file.metadata()
    network = STUDIO / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    assert facts["diffusion_blend.base_sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert json.loads(facts["diffusion_blend.rewards"])[0]["name"] == name
    assert float(facts["diffusion_blend.kl_weight"]) > 0 and float(facts["diffusion_blend.eta"]) == 1


@pytest.mark.parametrize("name", ["calm", "vivid"])
def test_loras_raise_their_reward(name):
    reward, scores = toy_rewards()[name], {}
    for model in ("base", name):
        policy = Policy(Alignment())
        if model != "base":
            make.load_lora(policy, name)
        prompts = random_prompts(16, seeded(3))
        states = rollout(policy.predictor(prompts), policy.levels, policy.noise(16, seeded(4)), seeded(5))
        with torch.no_grad():
            scores[model] = reward(policy.decode(states[-1]), prompts)
    gain = scores[name] - scores["base"]  # paired: same prompts, same noise
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5
