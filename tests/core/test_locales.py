"""The texts of all languages have the same keys and every word that a script draws; help pages have a picture.

tests/comfyui holds the English ones against the nodes.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "es", "fr", "ja", "ko", "ru", "zh")
FILES = ("main.json", "nodeDefs.json")


@cache
def texts(language: str, file: str) -> dict[str, str]:
    """Every text of a file by its path."""

    def walk(entry, path):
        if isinstance(entry, str):
            yield path, entry
        else:
            for key, inner in entry.items():
                yield from walk(inner, f"{path}/{key}")

    return dict(walk(json.loads((REPOSITORY / "locales" / language / file).read_text(encoding="utf8")), ""))


def test_there_are_these_languages():
    assert sorted(path.name for path in (REPOSITORY / "locales").iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("file", FILES)
def test_every_language_has_the_same_keys_with_texts_and_numbers(language, file):
    english, translation = texts("en", file), texts(language, file)
    assert translation.keys() == english.keys()
    for path, text in translation.items():
        assert text.strip(), path
        assert ("{n}" in text) == ("{n}" in english[path]), path


@pytest.mark.parametrize("language", sorted({*LANGUAGES} - {"en"}))
def test_names_tooltips_and_words_are_translated(language):
    same = {
        path
        for file in FILES
        for path, text in texts(language, file).items()
        if text == texts("en", file)[path] and " " in text
    }
    assert {path for path in same if not path.endswith("display_name")} <= {"/diffusionBlend/image {n}"}  # French
    assert len(same) < 3, "names such as MSDDA KSampler are the same in some languages"


def test_every_word_that_a_script_draws_has_a_text():
    known = {path.removeprefix("/diffusionBlend/") for path in texts("en", "main.json")}
    drawn = set()
    for script in (REPOSITORY / "web").glob("*.js"):
        source = script.read_text(encoding="utf8")
        drawn |= set(re.findall(r'word\("(.+?)"', source))
        drawn |= set(re.findall(r'mark\("(.+?)"', source))
        if script.stem == "duel":
            drawn |= set(re.findall(r'"([A-Za-z ]+)": "[<>=]"', source)) | set(re.findall(r'UNDO = "(.+?)"', source))
    assert drawn and drawn <= known
    assert known - drawn == {"image", "weighted"}, "heads of the scorer's table, which come with its data"


def test_every_help_page_shows_a_small_picture_of_its_node():
    pages = sorted((REPOSITORY / "web" / "docs").glob("*.md"))
    assert pages
    for page in pages:
        assert f"(pictures/{page.stem}.webp)" in page.read_text(encoding="utf8"), page.name
        assert 1_000 < (page.parent / "pictures" / f"{page.stem}.webp").stat().st_size < 40_000, page.name
