"""What holds for every reward: one score per image whatever its neighbours, gradients, bad input refused."""

import logging

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import Card, Reward, load_reward, reward_cards

# test_ocr.py and test_geneval.py hold these to the same: they need words or objects in the images.
CARDS = {name: card for name, card in reward_cards().items() if name not in ("ocr", "geneval")}
NAMES = sorted(CARDS)
DIFFERENTIABLE = [name for name, card in CARDS.items() if card.differentiable]
PROMPTED = [name for name, card in CARDS.items() if card.reads_prompt]
PROMPTS = ["a red fox", "two cats on a mat, 4k", "snow"]


@pytest.fixture
def reward(request, library, small):
    return load_reward(request.param, library)


every_reward = pytest.mark.parametrize("reward", NAMES, indirect=True)


def test_every_reward_of_the_issue_is_there():
    learned = {"clipscore", "pickscore", "hpsv2.1", "aesthetic", "aesthetic_v1", "aesthetic_v2.5", "imagereward"}
    formulas = {"brightness", "contrast", "saturation", "sharpness", "symmetry", "colourfulness"}
    assert {*learned, *formulas, "jpeg_compressibility", "jpeg_incompressibility"} <= set(NAMES)
    assert set(PROMPTED) == {"clipscore", "pickscore", "hpsv2.1", "hpsv2", "imagereward"}


@every_reward
def test_a_score_per_image_that_does_not_depend_on_the_neighbours(reward, images):
    scores = reward(images, PROMPTS)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    singles = torch.cat([reward(images[i : i + 1], PROMPTS[i]) for i in range(3)])
    torch.testing.assert_close(scores, singles, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reward(images, PROMPTS, images_per_pass=2), singles, rtol=1e-5, atol=1e-5)
    assert scores.std() > 0


@every_reward
def test_scores_are_the_same_every_time_and_weights_are_frozen(reward, images):
    torch.manual_seed(1)
    first = reward(images, "a fox")
    torch.manual_seed(2)
    assert torch.equal(reward(images, "a fox"), first)
    assert not reward.training and not any(p.requires_grad for p in reward.parameters())


@pytest.mark.parametrize("reward", PROMPTED, indirect=True)
def test_one_prompt_serves_all_images_and_another_prompt_gives_another_score(reward, images):
    assert torch.equal(reward(images, "a fox"), reward(images, ["a fox"] * 3))
    assert (reward(images, "a fox") - reward(images, "blue sky")).abs().min() > 0


@pytest.mark.parametrize("reward", DIFFERENTIABLE, indirect=True)
def test_gradients_equal_finite_differences(reward, images):
    reward.double()
    images = images[:2].double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:2]).sum(), images)
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        step = 1e-6
        with torch.no_grad():
            ends = [reward(images + sign * step * direction, PROMPTS[:2]).sum() for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope.abs() > 0
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(DIFFERENTIABLE)))
def test_rewards_without_gradient_say_so(name, images):
    assert not load_reward(name)(images.requires_grad_()).requires_grad


@pytest.mark.parametrize("reward", [n for n, card in CARDS.items() if card.files], indirect=True)
def test_half_precision_weights_keep_float32_scores(reward, images):
    full = reward(images, PROMPTS)
    half = reward.to(torch.bfloat16)(images, PROMPTS)
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits; two layers of it leave a few hundredths of the largest score
    assert full.abs().max() > 0.1
    torch.testing.assert_close(half, full, rtol=0, atol=0.06 * full.abs().max().item())
    assert not torch.equal(half, half.bfloat16().float())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"the shape \(3, 32, 32\), expected a tensor \(batch"),
        (torch.zeros(1, 32, 32, 3), "channels seem to be last"),
        (torch.zeros(0, 3, 32, 32), "there is no image"),
        (torch.zeros(2, 1, 32, 32), "They are grey: repeat"),
        (torch.zeros(2, 4, 32, 32), "alpha channel"),
        (torch.zeros(2, 2, 32, 32), "Give RGB images"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8, expected float values from 0 to 1. Divide by 255"),
        (torch.full((1, 3, 32, 32), 255.0), "run from 255 to 255, expected 0 to 1. Divide by 255"),
        (torch.full((1, 3, 32, 32), -1.0), "map them by x / 2"),
        (torch.cat([torch.zeros(2, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)]), "image 3 of 3 .*not numbers"),
        (torch.full((1, 3, 8, 8), torch.inf), "not numbers"),
        (torch.zeros(1, 1, 1, 1).expand(1, 3, 8192, 8192), "8192 x 8192 pixels are above the limit"),
        ([0.5], "type list"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(images, message):
    with pytest.raises(BlendError, match=message):
        load_reward("colourfulness")(images)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "b"], "2 prompts came for 3 images"),
        ([], "0 prompts came for 3 images"),
        ("", "a prompt is empty"),
        (None, "a prompt is empty"),
        (["a", " ", "b"], "a prompt is empty"),
        (["a", 3, "b"], "of type int, expected text"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts, message, library, small, images):
    with pytest.raises(BlendError, match=message):
        load_reward("clipscore", library)(images, prompts)


def test_a_long_prompt_is_cut_with_a_warning(library, small, images, caplog):
    reward = load_reward("imagereward", library)
    with caplog.at_level(logging.WARNING):
        scores = reward(images, "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2)
    assert scores.isfinite().all()
    assert "reads 35 tokens; the last 19 of 'a b c" in caplog.text


class Hungry(Reward):
    """Runs out of memory above two images."""

    def __init__(self):
        super().__init__(Card("hungry", "nothing"))
        self.passes = []

    def score(self, images, prompts):
        self.passes.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return images.mean((1, 2, 3))


def test_a_pass_that_runs_out_of_memory_is_halved_and_no_image_is_lost():
    images, reward = torch.rand(9, 3, 4, 4), Hungry()
    torch.testing.assert_close(reward(images), images.mean((1, 2, 3)))
    assert reward.passes == [9, 4, 2, 2, 2, 2, 1]
