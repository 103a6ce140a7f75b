"""geneval: what a prompt asks for, what boxes show of it, and the boxes of the detector against transformers' own."""

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import load_reward
from diffusion_blend.blend_core.rewards.composition import COLOURS, Box, Wanted, lies, shown_share, wanted_objects
from diffusion_blend.blend_core.rewards.learned import owl
from diffusion_blend.blend_core.rewards.learned.preprocessing import CLIP_MEAN, CLIP_STD, normalised

pytest.importorskip("transformers")

DOG, LEFT, RIGHT = Box((40, 40, 60, 60)), Box((0, 40, 20, 60)), Box((80, 40, 100, 60))
PROMPT = "a photo of two red apples and a dog"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a photo of a bench", [Wanted("bench")]),
        ("a photo of a computer keyboard and a teddy bear", [Wanted("computer keyboard"), Wanted("teddy bear")]),
        ("a photo of three benches", [Wanted("bench", 3)]),
        ("a photo of four knives", [Wanted("knife", 4)]),
        ("A photo of 2 cherries.", [Wanted("cherry", 2)]),
        ("a photo of two glasses and two buses", [Wanted("glass", 2), Wanted("bus", 2)]),
        ("a photo of a purple wine glass", [Wanted("wine glass", 1, "purple")]),
        ("a photo of an orange", [Wanted("orange")]),
        ("three ties and two cookies", [Wanted("tie", 3), Wanted("cookie", 2)]),
        ("a photo of a dog right of a teddy bear", [Wanted("dog", relation="right of"), Wanted("teddy bear")]),
        ("a cat to the left of a bench", [Wanted("cat", relation="left of"), Wanted("bench")]),
        (PROMPT, [Wanted("apple", 2, "red"), Wanted("dog")]),
        ("a red cup, a blue cup and a spoon", [Wanted("cup", 1, "red"), Wanted("cup", 1, "blue"), Wanted("spoon")]),
    ],
)
def test_a_prompt_of_genevals_form_is_read(prompt, wanted):
    assert wanted_objects(prompt) == wanted


@pytest.mark.parametrize("prompt", ["a fox in a snowy forest", "a dog on a mat", "no dogs", "2024", "two", "a, b and"])
def test_any_other_prompt_is_refused(prompt, library, small):
    with pytest.raises(BlendError, match="geneval asks for objects, their number"):
        load_reward("geneval", library)(torch.rand(1, 3, 64, 64), prompt)


@pytest.mark.parametrize("prompt", ["a dog and a dog", "a red dog and a dog", "a dog left of a dog"])
def test_objects_that_no_colour_tells_apart_are_refused(prompt):
    with pytest.raises(BlendError, match=r"cannot tell the objects of the prompt .* apart"):
        wanted_objects(prompt)


@pytest.mark.parametrize(
    ("prompt", "boxes", "share"),
    [
        ("a dog", [[DOG]], 1),
        ("a dog", [[]], 0),
        ("a dog", [[DOG, LEFT]], 0),  # one too many of one
        ("four dogs", [[DOG, LEFT, RIGHT]], 3 / 4),
        ("a dog and a cat", [[DOG], []], 1 / 2),
        ("a red dog", [[DOG._replace(colour="red")]], 1),
        ("a red dog", [[DOG._replace(colour="blue")]], 1 / 2),
        ("two red dogs", [[DOG._replace(colour="red"), LEFT]], (1 + 1 / 2) / 2),
        ("two red dogs", [[DOG._replace(colour="red")]], (1 / 2 + 0) / 2),  # no credit for colour at a wrong count
        ("a dog left of a cat", [[LEFT], [DOG]], 1),
        ("a dog left of a cat", [[RIGHT], [DOG]], 2 / 3),
        ("a dog left of a cat", [[LEFT], []], 1 / 3),
    ],
)
def test_the_share_that_is_shown_has_flow_grpos_partial_credit(prompt, boxes, share):
    assert shown_share(wanted_objects(prompt), boxes) == pytest.approx(share)


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        (LEFT, {"left of"}),
        (RIGHT, {"right of"}),
        (Box((40, 0, 60, 20)), {"above"}),
        (Box((40, 80, 60, 100)), {"below"}),
        (Box((0, 0, 20, 20)), {"left of", "above"}),
        (Box((37, 40, 57, 60)), set()),  # 3 pixels: less than a tenth of both widths
        (DOG, set()),
    ],
)
def test_where_a_box_lies_is_decided_as_geneval_does(box, relations):
    assert {name for name in ("left of", "right of", "above", "below") if lies(box, name, DOG)} == relations


@pytest.fixture
def reward(library, small):
    return load_reward("geneval", library)


@pytest.mark.parametrize("shape", [(40, 36), (30, 64)])
def test_boxes_are_those_of_the_network_on_a_square_in_the_images_pixels(reward, shape):
    """tests/comfyui holds the pixels to transformers' own processor, which needs torchvision."""
    from transformers.image_transforms import center_to_corners_format

    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    ids, mask = reward.tokens(["a dog", "a cat"], image.device)
    pixels = normalised(owl.whole(image[None], 64), CLIP_MEAN, CLIP_STD)
    with torch.no_grad():
        output = reward.network(input_ids=ids, pixel_values=pixels, attention_mask=mask)
        logits, corners = reward.detected(image, ["a dog", "a cat"])
    assert logits.shape == (16, 2)
    torch.testing.assert_close(logits, output.logits[0], rtol=1e-5, atol=1e-5)
    expected = center_to_corners_format(output.pred_boxes)[0] * max(shape)
    torch.testing.assert_close(corners, expected, rtol=1e-5, atol=1e-4)


def test_a_score_is_the_share_that_its_boxes_show_whatever_the_neighbours(reward, monkeypatch):
    monkeypatch.setattr(owl, "THRESHOLD", 0.0)  # random weights are sure of nothing
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wanted = wanted_objects("9 red apples")
    scores = reward(images, "9 red apples")
    with torch.no_grad():
        boxes = [reward.boxes_of(image, wanted) for image in images]
    assert scores.tolist() == pytest.approx([shown_share(wanted, lists) for lists in boxes])
    assert all(box.colour in COLOURS for lists in boxes for box in lists[0]) and boxes[0][0]
    assert scores.tolist() == pytest.approx([reward(images[i : i + 1], "9 red apples").item() for i in range(3)])
    (plain,) = reward.boxes_of(images[0], wanted_objects("9 apples"))
    assert [box.corners for box in plain] == [box.corners for box in boxes[0][0]]
    assert not any(box.colour for box in plain)


def test_each_colour_of_one_noun_has_its_own_boxes(reward, monkeypatch):
    """Two boxes, one red and one blue, whatever the network says: one cup of each was asked for."""
    first, second = owl.COLOURS.index("red"), owl.COLOURS.index("blue")
    logits = torch.full((2, 1 + len(COLOURS)), -9.0)
    logits[:, 0], logits[0, 1 + first], logits[1, 1 + second] = 9.0, 9.0, 9.0
    corners = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    monkeypatch.setattr(reward, "detected", lambda image, texts: (logits, corners))
    wanted = wanted_objects("a red cup and a blue cup")
    boxes = reward.boxes_of(torch.rand(3, 64, 64), wanted)
    assert [[box.colour for box in found_boxes] for found_boxes in boxes] == [["red"], ["blue"]]
    assert shown_share(wanted, boxes) == 1


def test_of_boxes_that_overlap_the_most_probable_stands_for_the_object():
    corners = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 10]])
    assert owl.separate(corners, torch.tensor([0.5, 0.9, 0.3, 0.4])) == [1, 2]
    assert owl.overlap(corners[0], corners[1]) == pytest.approx(9 / 11)
    assert owl.overlap(corners[0], torch.zeros(4)) == 0
