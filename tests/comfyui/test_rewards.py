"""Reward models, the scorer and Pick Best on ComfyUI's own memory management."""

import json
import sys
from importlib.util import find_spec

import comfy.model_management
import folder_paths
import numpy
import pytest
import torch
from comfy_api.latest._io import Hidden, HiddenHolder
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file

from .host import submodule

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def images():
    """Four images (batch, height, width, channels): grey, then more and more red."""
    batch = torch.full((4, 24, 32, 3), 0.5)
    for i, red in enumerate((0.5, 0.9, 0.7, 1.0)):
        batch[i, :, :, 0] = red
    return batch


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    """A folder that Load Reward Model looks into."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "reward_models", ([str(tmp_path)], set()))
    return tmp_path


@pytest.fixture
def clipscore(weights_folder, monkeypatch):
    """The files of a tiny CLIPScore; the tokenizer is the one that ComfyUI ships."""
    from transformers import CLIPConfig, CLIPModel

    clip = submodule("blend_core.rewards.learned.clip")
    small = SIZES | {"projection_dim": 8}
    config = CLIPConfig(
        vision_config=small | {"patch_size": 14, "image_size": 28}, text_config=dict(small), projection_dim=8
    )
    monkeypatch.setattr(clip, "_config", lambda *_: config)
    place = weights_folder / "clipscore"
    place.mkdir()
    torch.manual_seed(4)
    save_file({k: v.contiguous() for k, v in CLIPModel(config).state_dict().items()}, place / "model.safetensors")


def load(nodes, name, **options):
    options = {"device": "default", "precision": "auto", "scale": "none", "allow_download": False} | options
    return nodes["LoadRewardModel"].execute(reward_name=name, **options).result[0]


def score(nodes, images, models, prompt=("a red wall",), weights="", **more):
    slots = {f"reward_{i}": [model] for i, model in enumerate(models)}
    inputs = {"image": [images], "prompt": list(prompt), "rewards": slots, "weights": [weights]} | more
    return nodes["RewardScorer"].execute(**inputs).result


def test_the_scorer_sorts_best_first(nodes, images):
    scores, mean, ordered, best, table, *_ = score(nodes, images, [load(nodes, "colourfulness")])
    assert best == 3 and torch.equal(ordered, images[[3, 1, 2, 0]])
    assert mean == pytest.approx(sum(scores) / 4)
    lines = table.splitlines()
    assert "colourfulness" in lines[0] and [line.split("|")[1].strip() for line in lines[2:]] == ["3", "1", "2", "0"]


def test_weights_are_taken_as_they_are(nodes, images):
    models = [load(nodes, "colourfulness"), load(nodes, "brightness")]
    scores = [score(nodes, images, [model])[0] for model in models]
    total = score(nodes, images, models, weights="-1, 2")[0]
    assert total == pytest.approx([2 * b - a for a, b in zip(*scores, strict=True)])
    shares = score(nodes, images, models)[0]
    assert shares == pytest.approx([(a + b) / 2 for a, b in zip(*scores, strict=True)])


def test_thresholds_sort_images_into_buckets_and_count_those_that_pass(nodes, images):
    colour = load(nodes, "colourfulness")
    by_score = sorted(score(nodes, images, [colour])[0])
    middle, most = by_score[1:3], by_score[3]

    def sorted_in(good_at):
        return score(nodes, images, [colour], good_at=[good_at])[5:]

    # the images come as the least, the third, the second and the most colourful
    assert sorted_in(f"{middle[0] - 0.1}, {most - 0.1}") == (["bad", "ok", "ok", "great"], 3)
    assert sorted_in(str(middle[1] - 0.1)) == (["bad", "great", "bad", "great"], 2)
    assert sorted_in("1000") == (["bad"] * 4, 0)
    for off in sorted_in(""):
        assert isinstance(off, ExecutionBlocker) and "no threshold" in off.message


def test_scores_equal_to_a_threshold_reach_it(nodes, images):
    exact = score(nodes, images, [load(nodes, "brightness")])[0]
    buckets, passed = score(nodes, images, [load(nodes, "brightness")], good_at=[repr(exact[1])])[5:]
    assert buckets[1] == "great" and passed == sum(value >= exact[1] for value in exact)


def test_thresholds_that_cannot_be_are_refused_before_anything_runs(nodes):
    check = nodes["RewardScorer"].validate_inputs
    assert [check(good_at=[text]) for text in ("", "20", "20, 22", "-1 -0.5", None)] == [True] * 5 and check() is True
    for text in ("22, 20", "1, 2, 3", "inf", "nan"):
        assert "expected one finite number" in check(good_at=[text])
    assert "are not numbers" in check(good_at=["high"])


def test_scores_of_two_scorers_and_of_one_reward_twice_stand_side_by_side(nodes, images):
    class Scorer(nodes["RewardScorer"]):
        hidden = HiddenHolder.from_dict({Hidden.extra_pnginfo: {"workflow": {}}})

    rewards = submodule("blend_core.rewards")
    model = load(nodes, "brightness")
    slots = {"reward_0": [model], "reward_1": [model]}
    for part in images.split(2):
        Scorer.execute(image=[part], prompt=[""], rewards=slots, weights=["1, 2"])
    metadata = Scorer.hidden.extra_pnginfo
    assert list(metadata) == ["workflow", rewards.KEY]
    plain = score(nodes, images, [model])[0]
    for image, value in zip(rewards.as_bytes(images), plain, strict=True):
        stored = rewards.stored_scores(json.dumps(metadata[rewards.KEY]), rewards.image_key(image))
        assert stored.scores == pytest.approx({"brightness": value, "brightness (2)": value})
        assert stored.weighted == pytest.approx(3 * value) and stored.bucket is None


def test_a_learned_reward_lives_under_comfyuis_memory_management(nodes, images, clipscore):
    model = load(nodes, "clipscore")
    assert model.patcher not in comfy.model_management.loaded_models()
    scores, *_ = score(nodes, images, [model])
    assert model.patcher in comfy.model_management.loaded_models()
    assert model.patcher.model_size() == sum(p.nbytes for p in model.reward.parameters())
    comfy.model_management.unload_all_models()
    assert model.patcher not in comfy.model_management.loaded_models()
    assert score(nodes, images, [model])[0] == scores  # loaded again on demand


def test_a_learned_reward_reads_the_prompts(nodes, images, clipscore):
    model = load(nodes, "clipscore")
    one, other = (score(nodes, images, [model], [text])[0] for text in ("a red wall", "the sea"))
    mixed = score(nodes, images, [model], ["a red wall", "the sea", "a red wall", "the sea"])[0]
    assert mixed == pytest.approx([one[0], other[1], one[2], other[3]], rel=1e-4)
    assert mixed != pytest.approx(one, rel=1e-3)


def test_gradients_pass_through_a_model_that_a_node_loaded(nodes, images, clipscore):
    model = load(nodes, "clipscore")
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.movedim(-1, 1).clone().requires_grad_()
        model.reward(pixels, "a red wall").sum().backward()
        assert pixels.grad.abs().sum() > 0


def test_missing_files_are_refused_before_anything_runs(nodes, weights_folder):
    check = nodes["LoadRewardModel"].validate_inputs
    with pytest.raises(submodule("blend_core").BlendError, match="PickScore_v1") as refused:
        check(reward_name="pickscore")
    assert str(weights_folder / "pickscore" / "model.safetensors") in str(refused.value)
    assert check(reward_name="pickscore", allow_download=True) is True
    assert check(reward_name="brightness") is True


def test_ocr_without_its_packages_is_refused_before_anything_runs(nodes, monkeypatch):
    for package in ("rapidocr", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "cannot be imported"
    with pytest.raises(submodule("blend_core").BlendError, match="ocr needs rapidocr and onnxruntime") as refused:
        nodes["LoadRewardModel"].validate_inputs(reward_name="ocr")
    assert f'"{sys.executable}" -m pip install rapidocr onnxruntime' in str(refused.value)


@pytest.fixture
def geneval(weights_folder, monkeypatch):
    """The files of a tiny OWLv2; the tokenizer is the one that ComfyUI ships."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    owl = submodule("blend_core.rewards.learned.owl")
    config = Owlv2Config(text_config=dict(SIZES), vision_config=SIZES | {"image_size": 64}, projection_dim=16)
    monkeypatch.setattr(owl, "base_16", lambda: config)
    monkeypatch.setattr(owl, "THRESHOLD", 0.0)  # random weights are sure of nothing
    place = weights_folder / "geneval"
    place.mkdir()
    torch.manual_seed(4)
    state = Owlv2ForObjectDetection(config).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, place / "model.safetensors")


def test_geneval_scores_what_its_boxes_show_and_refuses_other_prompts(nodes, geneval, images):
    composition = submodule("blend_core.rewards.composition")
    model = load(nodes, "geneval")
    scores, *_ = score(nodes, images, [model], ["a photo of 9 red apples"])
    wanted = composition.wanted_objects("a photo of 9 red apples")
    pixels = images.movedim(-1, 1)
    expected = [composition.shown_share(wanted, model.reward.boxes_of(image, wanted)) for image in pixels]
    assert [float(value) for value in scores] == pytest.approx(expected)
    with pytest.raises(ValueError, match="geneval asks for objects, their number, colour and place"):
        score(nodes, images, [model], ["a red fox in a snowy forest"])


@pytest.mark.skipif(
    not (find_spec("torchvision") and find_spec("scipy")),
    reason="geneval's pixels are NOT COMPARED: transformers' processor needs torchvision and scipy",
)
@pytest.mark.parametrize("shape", [(40, 36), (30, 64), (64, 64)])
def test_the_detector_sees_the_pixels_of_transformers_own_processor(shape):
    """Up to the size of the network's input; above it transformers blurs before it samples."""
    from transformers import Owlv2ImageProcessor

    owl, preprocessing = (submodule(f"blend_core.rewards.learned.{name}") for name in ("owl", "preprocessing"))
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    processor = Owlv2ImageProcessor(size={"height": 64, "width": 64}, do_rescale=False)
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])
    ours = preprocessing.normalised(owl.whole(image[None], 64), preprocessing.CLIP_MEAN, preprocessing.CLIP_STD)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not (find_spec("rapidocr") and find_spec("onnxruntime")),
    reason="ocr is NOT TESTED in ComfyUI: its Python has no rapidocr and onnxruntime",
)
def test_ocr_sorts_images_by_what_can_be_read(nodes):
    pictures = []
    for text in ("OPFN", "OPEN", ""):
        picture = Image.new("RGB", (256, 96), "white")
        ImageDraw.Draw(picture).text((128, 48), text, font=ImageFont.load_default(40), fill="black", anchor="mm")
        pictures.append(torch.from_numpy(numpy.array(picture)).float() / 255)
    assert nodes["LoadRewardModel"].validate_inputs(reward_name="ocr") is True
    scores, _, _, best, *_ = score(nodes, torch.stack(pictures), [load(nodes, "ocr")], ['a sign that says "OPEN"'])
    assert scores == [0.75, 1, 0] and best == 1
    with pytest.raises(ValueError, match="quotes none"):
        score(nodes, torch.stack(pictures), [load(nodes, "ocr")], ["a sign"])


def test_a_file_in_the_folder_is_a_reward_of_ones_own(nodes, images, weights_folder):
    file = weights_folder / "green.py"
    file.write_text("def green(images): return images[:, 1].mean((1, 2))")
    options = next(i for i in nodes["LoadRewardModel"].define_schema().inputs if i.id == "reward_name").options
    assert "green.py" in options and options.index("brightness") < options.index("pickscore") < options.index(
        "green.py"
    )
    before = nodes["LoadRewardModel"].fingerprint_inputs(reward_name="green.py")
    assert score(nodes, images, [load(nodes, "green.py")])[0] == pytest.approx([0.5] * 4)
    file.write_text("def green(images): return images[:, 1].mean((1, 2)) + 1\n")
    assert nodes["LoadRewardModel"].fingerprint_inputs(reward_name="green.py") != before
    assert score(nodes, images, [load(nodes, "green.py")])[0] == pytest.approx([1.5] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:0], "no image"),
        (lambda images: images[..., :1], "grey"),
        (lambda images: torch.cat([images, images[..., :1]], -1), "alpha channel"),
        (lambda images: images * 255, "Divide by 255"),
        (lambda images: images / 0 * 0, "not numbers"),
        (lambda images: images[:1, :1, :1].expand(1, 8192, 8192, 3), "above the limit"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(nodes, images, change, message):
    with pytest.raises(ValueError, match=message):
        score(nodes, change(images), [load(nodes, "brightness")])


def test_prompts_and_weights_that_do_not_fit_are_refused(nodes, images, clipscore):
    with pytest.raises(ValueError, match="a prompt is empty"):
        score(nodes, images, [load(nodes, "clipscore")], [""])
    with pytest.raises(ValueError, match="3 prompts came for 4 images"):
        score(nodes, images, [load(nodes, "brightness")], ["a", "b", "c"])
    many = torch.full((18, 8, 8, 3), 0.5)  # above one pass: the last pass alone would take its one prompt for all
    with pytest.raises(ValueError, match="17 prompts came for 18 images"):
        score(nodes, many, [load(nodes, "brightness")], ["a"] * 17)
    with pytest.raises(ValueError, match=r"2 weights .* for 1 reward"):
        score(nodes, images, [load(nodes, "brightness")], weights="1, 2")


def test_a_list_of_images_is_scored_as_a_batch(nodes, images):
    models = {"reward_0": [load(nodes, "brightness")]}
    execute = nodes["RewardScorer"].execute
    as_list = execute(image=list(images.split(1)), prompt=[""], rewards=models).result
    assert as_list[0] == score(nodes, images, [models["reward_0"][0]])[0]
    with pytest.raises(ValueError, match=r"different sizes or channels \(32 x 24, 32 x 8\)|32 x 8, 32 x 24"):
        execute(image=[images, images[:, :8]], prompt=[""], rewards=models)


def pick(nodes, images, scores, k, latent=None):
    latents = None if latent is None else [latent]
    return nodes["PickBest"].execute(image=[images], scores=scores, k=[k], latent=latents).result


def test_pick_best_keeps_images_latents_and_what_belongs_to_them(nodes, images):
    latent = {
        "samples": torch.randn(4, 4, 3, 4),
        "noise_mask": torch.rand(4, 24, 32),
        "batch_index": [7, 8, 9, 10],
        "extra": "kept",
    }
    best, picked = pick(nodes, images, [0.1, 0.4, 0.4, 0.3], 3, latent)
    assert torch.equal(best, images[[1, 2, 3]])
    assert torch.equal(picked["samples"], latent["samples"][[1, 2, 3]])
    assert torch.equal(picked["noise_mask"], latent["noise_mask"][[1, 2, 3]])
    assert picked["batch_index"] == [8, 9, 10] and picked["extra"] == "kept"
    assert pick(nodes, images, [0, 1, 2, 3], 1, {"samples": latent["samples"]})[1]["batch_index"] == [3]


def test_pick_best_of_more_than_there_are_keeps_all_and_blocks_an_unconnected_latent(nodes, images):
    best, latent = pick(nodes, images, [0.1, 0.4, 0.2, 0.3], 9)
    assert torch.equal(best, images[[1, 3, 2, 0]])
    assert isinstance(latent, ExecutionBlocker) and "no latent" in latent.message


def test_pick_best_refuses_scores_and_latents_of_another_count(nodes, images):
    with pytest.raises(ValueError, match="3 scores came for 4 images"):
        pick(nodes, images, [1.0, 2.0, 3.0], 1)
    with pytest.raises(ValueError, match="2 latents came for 4 images"):
        pick(nodes, images, [1.0, 2.0, 3.0, 4.0], 1, {"samples": torch.zeros(2, 4, 3, 4)})
