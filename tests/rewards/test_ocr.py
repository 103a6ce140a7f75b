"""The reward ocr: text that Pillow writes into images is read and scored by Flow-GRPO's rule."""

import os
import sys
from importlib.util import find_spec

import matplotlib
import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import Library, WeightedSum, load_reward, reward_cards
from diffusion_blend.blend_core.rewards.learned.ocr import edit_distance, quoted_text, readable_share
from hypothesis import given
from hypothesis import strategies as st
from numpy import array
from PIL import Image, ImageDraw, ImageFont

PACKAGES = reward_cards()["ocr"].packages
reads = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)),
    reason=f"ocr is NOT TESTED: install {' '.join(PACKAGES)}",
)
FONTS = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
PROMPT = 'a wall with the words "Hello World" on it'
WORDS = st.text("abc", max_size=6)


def written(text, size=40, font=None):
    """An image (3, 160, 384) with dark text in its middle. font: a file of matplotlib's; default: Pillow's own."""
    picture = Image.new("RGB", (384, 160), (235, 225, 200))
    face = ImageFont.truetype(os.path.join(FONTS, font), size) if font else ImageFont.load_default(size)
    ImageDraw.Draw(picture).text((192, 80), text, font=face, fill=(30, 40, 90), anchor="mm")
    return torch.from_numpy(array(picture)).permute(2, 0, 1).float() / 255


def noisy(image, strength):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + strength * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def ocr():
    return load_reward("ocr")


@reads
@pytest.mark.parametrize("size", [12, 24, 56])
@pytest.mark.parametrize("font", [None, "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf", "STIXGeneralItalic.ttf"])
def test_words_of_any_size_and_font_are_read_whole(ocr, size, font):
    text = "Hello\nWorld" if size > 40 else "Hello World"
    assert ocr(written(text, size, font)[None], PROMPT).item() == 1


@reads
def test_other_words_score_by_their_distance_and_words_around_cost_nothing(ocr):
    images = torch.stack([written(text) for text in ("Helo Wurld", "Say: Hello World", "")])
    # one letter left out, one replaced, of ten
    torch.testing.assert_close(ocr(images, PROMPT), torch.tensor([0.8, 1, 0]))


@reads
def test_each_image_has_its_score_whatever_its_neighbours_and_prompts_count(ocr):
    images = torch.stack([written(text) for text in ("red", "blue", "grey")])
    prompts = [f'it says "{word}"' for word in ("red", "red", "grey")]
    scores = ocr(images, prompts)
    assert scores.tolist() == torch.cat([ocr(images[i : i + 1], prompts[i]) for i in range(3)]).tolist()
    assert scores[0] == scores[2] == 1 and scores[1] < 0.5
    assert torch.equal(ocr(images, prompts, images_per_pass=2), scores) and torch.equal(ocr(images, prompts), scores)


@reads
def test_noise_lowers_the_score_to_nothing(ocr):
    images = torch.stack([noisy(written("Hello World"), strength) for strength in (0, 0.1, 1)])
    assert ocr(images, PROMPT).tolist() == [1, 1, 0]
    halves = torch.stack([written("Hello World"), torch.cat([written("Hello World")[..., :192], noisy(
        written("Hello World"), 1)[..., 192:]], -1)])  # fmt: skip
    clear, spoilt = ocr(halves, PROMPT).tolist()
    assert clear == 1 and spoilt < 0.8


@reads
def test_scores_have_no_gradient_and_go_into_sums(ocr):
    image = written("Hello World")[None].requires_grad_()
    assert not ocr(image, PROMPT).requires_grad
    total = WeightedSum([ocr, load_reward("brightness")], [2, 1])
    expected = 2 + load_reward("brightness")(image)
    torch.testing.assert_close(total(image, PROMPT), expected)
    assert total.card.packages == PACKAGES and not total.card.differentiable


@reads
def test_prompts_that_quote_nothing_are_refused_before_any_image_is_read(ocr, monkeypatch):
    read = []
    monkeypatch.setattr(ocr, "read", read.append)
    images = torch.stack([written("a"), written("b")])
    with pytest.raises(BlendError, match=r"'a red fox' quotes none. Write it as in.*clipscore"):
        ocr(images, [PROMPT, "a red fox"], images_per_pass=1)
    with pytest.raises(BlendError, match="a prompt is empty"):
        ocr(images, "")
    assert not read


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign "OPEN" and "CLOSED"', "OPEN"),
        ("a sign that says “Café à la carte”", "Café à la carte"),
        ('two lines: "Hello\nWorld"', "Hello\nWorld"),
    ],
)
def test_the_first_text_between_double_quotes_counts(prompt, text):
    assert quoted_text(prompt) == text


@pytest.mark.parametrize("prompt", ["a fox", 'a 12" ruler', 'empty "" quotes', 'a "  " gap', "it's the fox's"])
def test_a_prompt_without_quoted_text_is_refused(prompt):
    with pytest.raises(BlendError, match="between double quotes"):
        quoted_text(prompt)


def test_the_share_is_flow_grpos():
    assert readable_share("HELLO world!", "Hello World") == 1  # part of what is read, case and spaces apart
    assert readable_share("OPFN", "OPEN") == pytest.approx(0.75)
    assert readable_share("", "OPEN") == 0
    assert readable_share("something else altogether", "OPEN") == 0  # never below


@given(WORDS, WORDS, WORDS)
def test_the_edit_distance_is_a_distance(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_known_edit_distances():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3


def test_without_its_packages_it_is_refused_with_the_command_that_installs_them(monkeypatch, tmp_path):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "cannot be imported"
    with pytest.raises(BlendError, match="ocr needs rapidocr and onnxruntime") as refused:
        load_reward("ocr", Library((tmp_path,)))
    assert f'"{sys.executable}" -m pip install rapidocr onnxruntime' in str(refused.value)
