"""Rewards by name, of the user's own, on other scales and in sums."""

import importlib.metadata

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import WeightedSum, load_reward, reward_cards, table


def test_those_without_weights_come_first():
    needs_files = [bool(card.files) for card in reward_cards().values()]
    assert needs_files == sorted(needs_files) and any(needs_files)


@pytest.mark.parametrize(("name", "nearest"), [("pikscore", "pickscore"), ("Image-Reward", "imagereward")])
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(BlendError, match=f"Did you mean {nearest}"):
        load_reward(name)


def test_vila_names_its_alternatives():
    with pytest.raises(BlendError, match=r"TensorFlow.*aesthetic.*pickscore"):
        load_reward("vila")


def test_an_unknown_scale_is_refused():
    with pytest.raises(BlendError, match="Choose one of none, diffusion-blend, flow-grpo"):
        load_reward("brightness", scale="loud")


def test_the_papers_scales(library, small, images):
    plain = load_reward("pickscore", library)
    scaled = load_reward("pickscore", library, scale="diffusion-blend")
    torch.testing.assert_close(scaled(images, "a fox"), plain(images, "a fox") - 19)
    assert scaled.card.usual_range == (-2, 5)
    by_26 = load_reward("pickscore", library, scale="flow-grpo")
    torch.testing.assert_close(by_26(images, "a fox"), plain(images, "a fox") / 26)
    jpeg = load_reward("jpeg_compressibility")(images)
    torch.testing.assert_close(load_reward("jpeg_compressibility", scale="flow-grpo")(images), jpeg / 500)
    assert torch.equal(load_reward("jpeg_compressibility", scale="diffusion-blend")(images), jpeg)


def test_a_weighted_sum_is_the_sum(library, small, images):
    parts = [load_reward("clipscore", library), load_reward("brightness")]
    total = WeightedSum(parts, [0.5, -2])
    expected = 0.5 * parts[0](images, "a fox") - 2 * parts[1](images)
    torch.testing.assert_close(total(images, "a fox"), expected)
    assert total.card.reads_prompt and total.card.differentiable
    assert total.card.usual_range == (5.5, 17.5)
    assert not WeightedSum([load_reward("jpeg_compressibility")], [1]).card.differentiable


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, float("nan")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(BlendError, match="one finite number per reward"):
        WeightedSum([load_reward("brightness"), load_reward("contrast")], weights)


OWN = '''
def redness(images, prompts):
    """How red the image is."""
    return images[:, 0].mean((1, 2)) + ("red" in prompts[0])
redness.usual_range, redness.differentiable = (0, 1), True
def _helper(x):
    return x
'''


def test_a_reward_of_ones_own_from_a_file(tmp_path, images):
    (tmp_path / "red.py").write_text(OWN)
    reward = load_reward(str(tmp_path / "red.py"))
    torch.testing.assert_close(reward(images, "red"), images[:, 0].mean((1, 2)) + 1)
    card = reward.card
    assert (card.name, card.measures, card.usual_range) == ("red.py", "How red the image is.", (0, 1))
    assert card.differentiable and card.reads_prompt
    named = load_reward(f"{tmp_path / 'red.py'}:redness")
    assert torch.equal(named(images, "red"), reward(images, "red")) and named.card.name == "red.py:redness"


def test_a_file_of_ones_own_that_bears_a_known_name_is_not_rescaled(tmp_path, images):
    (tmp_path / "pickscore.py").write_text("def own(images): return images.mean((1, 2, 3))")
    reward = load_reward(str(tmp_path / "pickscore.py"), scale="diffusion-blend")
    torch.testing.assert_close(reward(images), images.mean((1, 2, 3)))


def test_a_reward_of_ones_own_from_a_package(images):
    reward = load_reward("diffusion_blend.blend_core.rewards.image:brightness")
    assert torch.equal(reward(images), load_reward("brightness")(images))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1", "public functions are none"),
        ("def f(x): return x\ndef g(x): return x", "public functions are f, g"),
        ("def f(x): return x.mean()", r"gave shape \(\) for 3 images"),
        ("def f(x): return x.mean((1, 2, 3)) * float('nan')", "NaN"),
        ("1 / 0", "cannot be run: ZeroDivisionError"),
        ("def f(", "cannot be run: SyntaxError"),
        ("def f(x): return x\nf.usual_range = 'wide'", "expected two numbers"),
    ],
)
def test_a_function_that_is_no_reward_is_refused(tmp_path, images, text, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(BlendError, match=message):
        load_reward(str(tmp_path / "own.py"))(images)


def test_places_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(BlendError, match="is no file"):
        load_reward(str(tmp_path / "gone.py"))
    with pytest.raises(BlendError, match="cannot be imported"):
        load_reward("no_such_package:reward")


def test_packages_offer_rewards_through_entry_points(monkeypatch, images):
    entry = importlib.metadata.EntryPoint(
        "luma", "diffusion_blend.blend_core.rewards.image:brightness", table.ENTRY_POINTS
    )
    points = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr(table, "entry_points", lambda **select: points.select(**select))
    assert table.installed_rewards() == ["luma"]
    torch.testing.assert_close(load_reward("luma")(images), load_reward("brightness")(images))
