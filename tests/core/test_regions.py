"""Regions: blends painted over one another."""

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.blend_core.regions import painted

from .worlds import normal

SIZE, IMAGES = (4, 6), 2
LAYERS = [torch.tensor(c, dtype=torch.float64).expand(3, -1) for c in ((1.0, 0, 0), (0, 0.6, 0.4), (-0.5, 1.5, 0))]
PREDICTIONS = normal(3, 2 * IMAGES, 5, *SIZE, seed=1)  # three variants; two groups of rows


def evaluate(variants):
    return PREDICTIONS[variants[:, 0]]


def prediction(layer):
    return exact(layer, 3, range(IMAGES))(evaluate, 0)


def test_a_mask_of_ones_is_no_mask_bit_for_bit():
    plan = painted(LAYERS[:2], [torch.ones(1, 16, 24)], SIZE, IMAGES)
    assert torch.equal(plan(evaluate, 0, IMAGES), prediction(LAYERS[1]))


def test_a_mask_of_zeros_is_what_lies_below_bit_for_bit():
    plan = painted(LAYERS[:2], [torch.zeros(1, 16, 24)], SIZE, IMAGES)
    assert torch.equal(plan(evaluate, 0, IMAGES), prediction(LAYERS[0]))


def test_every_position_has_its_own_blend():
    left, top = torch.zeros(1, 16, 24), torch.zeros(1, 16, 24)
    left[..., :12], top[:, :8] = 1, 0.25
    plan = painted(LAYERS, [left, top], SIZE, IMAGES)
    below = torch.where(torch.arange(6) < 3, prediction(LAYERS[1]), prediction(LAYERS[0]))
    expected = below.clone()
    expected[..., :2, :] = 0.75 * below[..., :2, :] + 0.25 * prediction(LAYERS[2])[..., :2, :]
    torch.testing.assert_close(plan(evaluate, 1, IMAGES), expected)


def test_each_image_may_have_its_own_mask():
    masks = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    result = painted(LAYERS[:2], [masks], SIZE, IMAGES)(evaluate, 0, IMAGES)
    rows = [prediction(LAYERS[1 - row % 2])[row] for row in range(2 * IMAGES)]  # rows are group by group of both images
    assert torch.equal(result, torch.stack(rows))


def test_video_latents_share_the_mask_over_frames():
    frames = normal(3, 2, 5, 7, *SIZE, seed=2)
    mask = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(3))
    result = painted(LAYERS[:2], [mask], SIZE, 2)(lambda variants: frames[variants[:, 0]], 0, 2)
    coefficients = [(1 - mask) * LAYERS[0][0, i] + mask * LAYERS[1][0, i] for i in range(3)]
    expected = sum(c[:, None, None] * f for c, f in zip(coefficients, frames, strict=True))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_covers_latents_of_any_stride():
    fine = torch.zeros(1, 40, 60)
    fine[:, :, :5] = 1  # half of the first column of positions
    plan = painted(LAYERS[:2], [fine], SIZE, IMAGES)
    assert plan.maps[1, 0, :, 0].tolist() == [0.5] * 4 and plan.maps[1, 0, :, 1:].sum() == 0


def test_parts_of_the_image_and_other_counts_of_masks_are_refused():
    plan = painted(LAYERS[:2], [torch.ones(2, 8, 8)], SIZE, IMAGES)
    with pytest.raises(BlendError, match="a part of the image"):
        plan(lambda variants: PREDICTIONS[variants[:, 0], ..., :2], 0, IMAGES)
    with pytest.raises(BlendError, match="2 masks, but 1 images"):
        plan(lambda variants: PREDICTIONS[variants[:, 0], :1], 0, 1)
    with pytest.raises(BlendError, match="expected one mask for all"):
        painted(LAYERS[:2], [torch.ones(3, 8, 8)], SIZE, IMAGES)
