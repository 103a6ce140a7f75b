"""The toy studio: its pictures, transition, rewards and shipped files."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from diffusion_blend.blend_core.adapters.files import sha256
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.blend_core.rewards import jpeg_compressibility
from safetensors import safe_open

pytest.importorskip("diffusers")

from diffusion_blend.lab.toy import make
from diffusion_blend.lab.toy.data import (
    BACKGROUNDS,
    COLOURS,
    WORDS,
    caption,
    draw,
    random_labels,
    random_prompts,
    words_of,
)
from diffusion_blend.lab.toy.model import STUDIO, TEXT_LENGTH, build_scheduler, build_tokenizer, load_base
from diffusion_blend.lab.toy.rewards import Nearest, _log_odds, jpeg_bits, toy_reward, toy_rewards
from diffusion_blend.lab.toy.scorer import accuracy, labels_of_prompt, share_read
from diffusion_blend.lab.toy.training import resolved, toy_policy
from diffusion_blend.trainers.data.prompts import read_prompts
from diffusion_blend.trainers.model.chain import ddim_steps
from diffusion_blend.trainers.settings.config import read_config

LORAS = ("calm", "vivid", "faithful")
TINT = 0.12  # how far brightness (8%) and tint (0.03) can take a colour of a picture from its palette
GAIN_IMAGES = 16  # the gain of vivid is 17 standard errors of as many


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


def test_every_step_of_the_studio_has_a_likelihood():
    assert all(step.sigma > 0 for step in ddim_steps(build_scheduler(), 20, 1.0))


def test_the_studios_prompts_are_all_captions():
    prompts = read_prompts(STUDIO / "prompts.txt")
    assert len(prompts) == len(set(prompts)) == 6 * 4 * 4 * 3
    assert {caption(labels) for labels in ({name: WORDS[name][0] for name in WORDS},)} <= set(prompts)


def test_toy_names_stand_for_the_studios_places_and_rewards():
    config, rewards = resolved(read_config(["toy"], reward__name="toy:vivid", reward__watch=("toy:calm",)))
    assert config.base.path == str(STUDIO / "base") and config.prompts.file == str(STUDIO / "prompts.txt")
    assert rewards.name == "vivid" and list(rewards.all) == ["vivid", "calm"]
    opened, _ = resolved(read_config(["toy", "toy_open"]))
    assert opened.prompts.file == str(STUDIO / "prompts_open.txt")
    with pytest.raises(BlendError, match="toy:calm, toy:vivid, toy:faithful"):
        resolved(read_config(["toy"], reward__name="toy:calmer"))


def test_a_sum_of_rewards_is_trained_as_one_and_its_file_names_all():
    _, rewards = resolved(read_config(["toy"], reward__sum=("0.25*toy:calm", "0.75*toy:vivid")))
    images, known = pictures(4)[1], toy_rewards()
    calm, vivid = (known[name](images, ["a red cross"] * 4) for name in ("calm", "vivid"))
    torch.testing.assert_close(rewards.trained(images, ["a red cross"] * 4), 0.25 * calm + 0.75 * vivid)
    assert rewards.name == "0.25 calm + 0.75 vivid"
    assert [(fact["name"], fact["weight"]) for fact in rewards.facts()] == [("calm", 0.25), ("vivid", 0.75)]
    assert rewards.facts()[0]["scale"] == pytest.approx(known["calm"].scale / known["calm"].std)


@pytest.mark.parametrize("name", LORAS)
def test_a_score_is_exact_and_its_gradient_the_surrogates(name):
    reward = toy_rewards()[name]
    images = pictures(4)[1].requires_grad_()
    prompts = [caption({"colour": "red", "shape": "cross", "background": "teal", "texture": "dotted"})] * 4
    scores = reward(images, prompts)
    torch.testing.assert_close(scores, reward(images.detach(), prompts), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(scores.sum(), images)
    assert slope.isfinite().all() and slope.abs().max() > 0


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


def test_the_judges_share_is_its_accuracy_image_by_image():
    labels, images = pictures(48)
    prompts = [caption(words_of(labels, (i + i % 2) % 48)) for i in range(48)]  # every second one is the next picture's
    shares, read = share_read(make.judge(), images, prompts), accuracy(make.judge(), images, prompts)
    assert shares.mean().item() == pytest.approx(sum(read.values()) / len(read), abs=1e-6)
    assert shares[::2].mean() > 0.95 > 0.5 > shares[1::2].mean()
    torch.testing.assert_close(toy_reward("toy:judge")(images, prompts), shares)
    assert share_read(make.judge(), images[:1], ["nothing that is drawn"]).tolist() == [1.0]


def test_nn_is_the_root_mean_square_difference_to_the_nearest_drawing_of_the_prompt():
    nearest, prompt = Nearest(count=230), "a red cross on a dotted teal background"
    drawn = nearest.drawn(prompt)
    assert drawn.shape == (230, 3, 32, 32) and torch.equal(drawn, Nearest(count=230).drawn(prompt))
    shifted = drawn[:4].clone()
    shifted[:, 0] += 0.01 * torch.where(shifted[:, 0] > 0.5, -1, 1)  # one channel of three
    expected = torch.tensor([0.01 / 3**0.5] * 4)
    torch.testing.assert_close(nearest(shifted, [prompt] * 4), expected, rtol=1e-3, atol=0)
    assert nearest(drawn[:4], [prompt] * 4).tolist() == [0.0] * 4


def test_nn_knows_the_prompt_and_what_it_leaves_open():
    labels, images = pictures(8, seed=4)
    captions, others = ([caption(words_of(labels, i)) for i in order] for order in (range(8), (*range(1, 8), 0)))
    shapes = [caption(words_of(labels, i), background=False) for i in range(8)]
    nearest = toy_reward("toy:nn")
    right, wrong, open_ = (nearest(images, prompts) for prompts in (captions, others, shapes))
    assert (right < 0.15).all() and (right < wrong).all()  # a shape's edge a pixel off is 0.1 or so
    assert (right < open_).float().mean() > 0.8  # as many drawings, spread over all backgrounds


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


@pytest.mark.parametrize(("name", "preference"), make.ORACLES.items())
def test_an_oracle_says_which_preference_it_was_trained_for(name, preference):
    with safe_open(STUDIO / "loras" / f"{name}.safetensors", "pt") as file:
        facts = file.metadata()
    rewards = json.loads(facts["diffusion_blend.rewards"])
    assert {term["name"]: term["weight"] for term in rewards} == dict(zip(("calm", "vivid"), preference, strict=True))
    plain = safe_open(STUDIO / "loras" / "calm.safetensors", "pt").metadata()
    same = ("kl_weight", "algorithm", "learning_rate", "rank", "sampling_steps", "cfg", "eta", "seed")
    assert all(facts[f"diffusion_blend.{key}"] == plain[f"diffusion_blend.{key}"] for key in same)  # equal settings


def test_the_distilled_lora_is_of_the_studios_own_pair_and_nearer_to_the_exact_blend_than_the_export():
    with safe_open(STUDIO / "loras" / f"{make.DISTILLED}.safetensors", "pt") as file:
        facts = file.metadata()
    parts = json.loads(facts["diffusion_blend.parts"])
    digests = {name: sha256(STUDIO / "loras" / f"{name}.safetensors") for name in ("calm", "vivid")}
    assert {part["name"]: part["sha256"] for part in parts} == digests
    assert facts["diffusion_blend.learning_rate"] == str(make.DISTILLATION["optimisation.learning_rate"])
    rows = json.loads((STUDIO / f"{make.DISTILLED}.distances.json").read_text())
    *exports, distilled = [row["distance"] for row in rows]
    assert all(distilled[steps] < export[steps] for export in exports for steps in ("20", "50"))


@pytest.fixture(scope="module")
def base_samples():
    """Images of the base, and their prompts."""
    return make.samples(toy_policy(), GAIN_IMAGES, seed=3)[:2]


@pytest.mark.parametrize("name", ["calm", "vivid"])
def test_loras_raise_their_reward(name, base_samples):
    images, prompts = base_samples
    tuned, same, _ = make.samples(toy_policy(STUDIO / "loras" / f"{name}.safetensors"), GAIN_IMAGES, seed=3)
    assert same == prompts  # paired: same prompts, same noise
    reward = toy_rewards()[name]
    gain = reward(tuned, prompts) - reward(images, prompts)
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5
