"""Thresholds, and scores kept in an image's metadata."""

import json

import numpy
import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.rewards import (
    KEY,
    StoredScores,
    Thresholds,
    as_bytes,
    image_key,
    store_scores,
    stored_scores,
)
from PIL import Image


@pytest.mark.parametrize(
    ("text", "buckets"),
    [
        ("20", ["bad", "great", "great", "great"]),
        ("20, 22", ["bad", "ok", "ok", "great"]),
        ("20 22", ["bad", "ok", "ok", "great"]),
        ("22,22", ["bad", "bad", "bad", "great"]),
        ("-1", ["great"] * 4),
    ],
)
def test_a_score_is_in_the_bucket_whose_threshold_it_reaches(text, buckets):
    thresholds = Thresholds.of(text)
    assert [thresholds.bucket(score) for score in (19.9, 20.0, 21.5, 22.0)] == buckets
    assert thresholds.bucket(float("nan")) == "bad"


def test_empty_text_is_no_threshold():
    assert Thresholds.of("") is None and Thresholds.of("  ") is None


@pytest.mark.parametrize("text", ["22, 20", "1, 2, 3", "nan", "1, inf"])
def test_thresholds_that_cannot_be_are_refused(text):
    with pytest.raises(BlendError, match="expected one finite number"):
        Thresholds.of(text)


def test_words_are_no_thresholds():
    with pytest.raises(BlendError, match="'good' are not numbers"):
        Thresholds.of("good")


@pytest.fixture
def keys(images):
    return [image_key(image) for image in as_bytes(images.movedim(1, -1))]


def test_scores_come_back_as_they_went_in_and_stand_next_to_others(keys):
    metadata, first = {"workflow": {}}, StoredScores({"a": 1.5, "b": -2.0}, 0.25, "ok")
    store_scores(metadata, [first], keys[:1])
    store_scores(metadata, [StoredScores({"a": 3.0}, 3.0)], keys[1:2])
    text = json.dumps(metadata[KEY])
    assert stored_scores(text, keys[0]) == first
    assert stored_scores(text, keys[1]) == StoredScores({"a": 3.0}, 3.0)
    assert stored_scores(text, keys[2]) is None and set(metadata) == {"workflow", KEY}


def test_scores_that_json_cannot_say_are_left_out(keys):
    metadata = {KEY: "another program's"}
    store_scores(metadata, [StoredScores({"a": float("nan")}, 1.0), StoredScores({"a": 1.0}, 1.0)], keys[:2])
    assert list(metadata[KEY]["images"]) == keys[1:2]
    json.dumps(metadata, allow_nan=False)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "[" * 100_000),
        *('{"format": 9}', '{"format": 1}', '{"format": 1, "images": {"k": 3}}'),
        '{"format": 1, "images": {"k": {"scores": {"a": "x"}, "weighted": 1, "bucket": null}}}',
        '{"format": 1, "images": {"k": {"scores": {"a": NaN}, "weighted": 1, "bucket": null}}}',
    ],
)
def test_metadata_of_other_programs_holds_no_scores(text):
    assert stored_scores(text, "k") is None


def test_an_image_is_known_by_its_pixels_through_a_png_and_by_no_other(images, keys, tmp_path):
    pixels = as_bytes(images.movedim(1, -1))
    Image.fromarray(pixels[0].numpy()).save(tmp_path / "a.png")
    read = torch.from_numpy(numpy.array(Image.open(tmp_path / "a.png")))
    assert image_key(read) == keys[0] and len(set(keys)) == 3
    read[0, 0, 0] ^= 1
    assert image_key(read) != keys[0]
    assert image_key(pixels[0].reshape(36, 40, 3)) != keys[0]  # the same bytes in another shape
