"""Learned rewards against code that nobody here wrote: the originals' own packages, run by originals.py.

The originals score photographs with small networks of random weights, which have the official number of heads, the
official activations and, but for SigLIP's, heads (the last layers) of the official sizes. The weights come in the
authors' files and spellings, and `load_reward` reads them as it would read the real ones; it is only made to expect
narrow and shallow towers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from diffusion_blend.blend_core.rewards import Library, load_reward
from diffusion_blend.blend_core.rewards.learned import blip, clip, networks, preprocessing, siglip
from diffusion_blend.blend_core.rewards.learned.text import clip_tokens
from transformers import BlipTextModel, BlipVisionModel, CLIPModel, SiglipVisionModel

PACKAGES = Path(sys.prefix) / "originals"
LEARNED = ("clipscore", "pickscore", "hpsv2.1", "aesthetic", "aesthetic_v1", "aesthetic_v2.5", "imagereward")
HEAD_WIDTH, LAYERS = 4, 2


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """The folder that originals.py has filled."""
    if not PACKAGES.is_dir():
        pytest.skip(f"PARITY IS NOT TESTED: the original packages are not in {PACKAGES}; `make test` installs them")
    out = tmp_path_factory.mktemp("originals")
    script = Path(__file__).with_name("originals.py")
    environment = os.environ | {"PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(script), str(out)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"originals.py failed:\n{done.stderr[-3000:]}"
    # OpenAI's CLIP-L is published by transformers' names. No package has that conversion any more: ours makes the
    # file, and the scores below say whether it is right.
    folder = out / "clip-vit-large-patch14"
    places = {"text_model": torch.arange(77)[None], "vision_model": torch.arange(257)[None]}  # buffers, in it as well
    state = clip.clip_state(load_file(folder / "open_clip.safetensors"))
    state |= {f"{tower}.embeddings.position_ids": value for tower, value in places.items()}
    save_file(state, folder / "model.safetensors")
    return out


@pytest.fixture(scope="session")
def results(originals):
    return load_file(originals / "results.safetensors")


@pytest.fixture(scope="session")
def facts(originals):
    return json.loads((originals / "facts.json").read_text(encoding="utf-8"))


def narrowed(config):
    """A tower's configuration made as small as in originals.py; everything but sizes stays as for the real one."""
    config.hidden_size = config.num_attention_heads * HEAD_WIDTH
    config.intermediate_size = 4 * config.hidden_size
    config.num_hidden_layers = LAYERS
    return config


@pytest.fixture
def load(originals, monkeypatch):
    """name -> the reward, from the originals' files in the folder given (default: where originals.py wrote them)."""
    vision, text, tower = blip.vision_config, blip.text_config, siglip.so400m
    pieces = (originals / "imagereward" / "vocab.txt").read_text(encoding="utf-8").split()

    def filled_clip(kind, config, state):
        for part in (getattr(config, "vision_config", config), getattr(config, "text_config", None)):
            if part is not None:
                narrowed(part)
        return networks.filled(kind, config, state)

    def small_text():
        config = text()  # its width stays: the head reads it
        config.num_hidden_layers, config.intermediate_size = LAYERS, 96
        config.vocab_size, config.encoder_hidden_size = len(pieces) + 2, vision().num_attention_heads * HEAD_WIDTH
        return config

    monkeypatch.setattr(clip, "filled", filled_clip)
    monkeypatch.setattr(blip, "vision_config", lambda: narrowed(vision()))
    monkeypatch.setattr(blip, "text_config", small_text)
    monkeypatch.setattr(siglip, "so400m", lambda: narrowed(tower()))
    return lambda name, *folders: load_reward(name, Library((*folders, originals)))


def unit_range(pixels):
    return pixels.float() / 255


@pytest.mark.parametrize("name", LEARNED)
def test_scores_of_the_same_pixels_are_the_originals(name, load, results, facts):
    """Squares of the size that the tower reads, so that nothing is resized on either side."""
    theirs = results[f"scores of squares/{name}"]
    ours = load(name)(unit_range(results[f"images/{384 if name == 'aesthetic_v2.5' else 224}"]), facts["prompts"])
    difference, spread = (ours - theirs).abs().max().item(), (theirs.max() - theirs.min()).item()
    print(f"{name}: differs by {difference:.1e} at most, of scores that range over {spread:.3g}")
    # Both sides are float32 and add up in another order: transformers fuses attention, we fold the head into one
    # layer. CLIPScore and PickScore multiply a cosine, good to 1e-7, by 100. Measured: 5e-6, and 3e-6 of the range.
    # A norm's epsilon of 1e-5 for 1e-6, or the other form of GELU, moves scores by more than 1e-4 of their range.
    assert difference < min(2e-5, 5e-5 * spread)


@pytest.mark.parametrize("name", LEARNED)
def test_scores_of_whole_photographs_are_the_originals(name, load, results, facts):
    """Each reward has the preprocessing of its original; what is left is Pillow's rounding to 8 bits."""
    theirs = results[f"scores of photographs/{name}"]
    reward = load(name)
    photographs = [unit_range(results[f"photographs/{title}"])[None] for title in facts["whole"]]
    ours = torch.cat([reward(image, prompt) for image, prompt in zip(photographs, facts["prompts"], strict=True)])
    spread = theirs.max() - theirs.min()
    print(f"{name}: differs by {(ours - theirs).abs().max() / spread:.2%} of the range of scores")
    assert (ours - theirs).abs().max() < 0.005 * spread


PIPELINES = {  # ours, size, mean and deviation; by the name of the original's results
    "clip": (preprocessing.cropped, 224, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD),
    "imagereward": (preprocessing.cropped, 224, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD),
    "pickscore": (preprocessing.cropped_low, 224, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD),
    "hps": (preprocessing.padded, 224, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD),
    "siglip": (preprocessing.squashed, 384, preprocessing.HALF, preprocessing.HALF),
}


@pytest.mark.parametrize("original", PIPELINES)
def test_preprocessing_is_the_originals(original, results):
    """On photographs that come with scikit-image: large, small, wide, tall and enlarged, in units of [0, 1].

    Pillow rounds to 8 bits after each of its two passes, we never do: 0.5 / 255 for the last rounding, and the first
    one times the filter's absolute sum, about 1.3; together 0.0045 at most, 0.0012 on average. HPSv2 resizes floats.
    """
    resize, size, mean, std = PIPELINES[original]
    most, means = {}, {}
    for title in (name.split("/")[1] for name in results if name.startswith("photographs/")):
        theirs = results[f"{original}/{title}"]
        ours = preprocessing.normalised(resize(unit_range(results[f"photographs/{title}"])[None], size), mean, std)[0]
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        units = difference * torch.tensor(std).view(3, 1, 1)
        most[title], means[title] = units.max().item(), units.mean().item()
        print(
            f"{original}, {title}: {most[title]:.4f} at most, {means[title]:.5f} on average; "
            f"normalised {difference.max():.4f} and {difference.mean():.5f}"
        )
    assert len(most) == 14
    bounds = (1e-5, 1e-6) if original == "hps" else (5e-3, 1.5e-3)  # the issue asks for 2e-2 and 2e-3
    assert max(most.values()) < bounds[0] and max(means.values()) < bounds[1]


def test_clip_reads_the_same_tokens_as_open_clip(originals, facts):
    """Up to the end of the text; what pads it differs, and is not read."""
    ids, mask = clip_tokens(originals / "clip-vit-large-patch14")(facts["prompts"], torch.device("cpu"))
    theirs = torch.tensor(facts["ids"])
    assert ids.shape == theirs.shape
    ends = theirs.argmax(-1)
    assert torch.equal(mask.sum(-1), ends + 1)
    for ours, original, end in zip(ids, theirs, ends, strict=True):
        assert torch.equal(ours[: end + 1], original[: end + 1])
    assert ends.max() == 76, "one of the prompts is to be cut"


def on_meta(layout):
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def expected(kind, config, **options):
    with torch.device("meta"):
        return kind(config, **options).state_dict()


def test_the_official_imagereward_file_is_read_without_a_missing_or_spare_key(facts):
    """All names and shapes of ImageReward.pt, from the original's modules at full size."""
    layout = on_meta(facts["layouts"]["imagereward"])
    assert len(layout) == 625 and "blip.text_encoder.embeddings.position_ids" in layout
    vision, text, head = blip.imagereward_parts(layout)
    text = {name: value for name, value in text.items() if not name.endswith(networks.PLACES)}
    networks.check_keys("vision", expected(BlipVisionModel, blip.vision_config()), vision)
    networks.check_keys("text", expected(BlipTextModel, blip.text_config(), add_pooling_layer=False), text)
    shapes = [tuple(head[name].shape) for name in sorted(head) if name.endswith("weight")]
    assert shapes == [(1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)] and len(head) == 10
    unused = sum(name.startswith(blip.UNUSED) or name.endswith(networks.PLACES) for name in layout)
    assert len(vision) + len(text) + len(head) + unused == len(layout)


@pytest.mark.parametrize(("name", "config"), [("hpsv2.1", clip.vit_h_14), ("clip-l", clip.vit_l_14)])
def test_the_official_clip_layouts_are_read_without_a_missing_or_spare_key(name, config, facts):
    state = clip.clip_state(on_meta(facts["layouts"][name]))
    networks.check_keys(name, expected(CLIPModel, config()), state)


def test_siglip_has_the_size_of_timms(facts):
    """timm's own so400m at 384: other names, as many numbers in every block."""
    theirs, ours = on_meta(facts["layouts"]["siglip"]), expected(SiglipVisionModel, siglip.so400m())

    def count(state, part):
        return sum(value.numel() for name, value in state.items() if part in name)

    assert count(ours, "") == count(theirs, "")
    assert count(ours, "layers.26.") == count(theirs, "blocks.26.") > 0
    assert count(ours, "patch_embedding") == count(theirs, "patch_embed.")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("missing", "blip.visual_encoder.blocks.1.attn.qkv.weight"),
        ("missing", "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"),
        ("spare", "blip.text_encoder.encoder.layer.2.output.dense.weight"),
        ("spare", "blip.queue"),
    ],
)
def test_a_missing_or_spare_key_of_imagereward_is_refused_by_name(change, key, load, originals, tmp_path):
    state = torch.load(originals / "imagereward" / "ImageReward.pt", weights_only=True)
    if change == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(1)
    (tmp_path / "imagereward").mkdir()
    torch.save(state, tmp_path / "imagereward" / "ImageReward.pt")
    with pytest.raises(BlendError, match=key.split(".")[-2] + r"\." + key.split(".")[-1]):
        load("imagereward", tmp_path)
