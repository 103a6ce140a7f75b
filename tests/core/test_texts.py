"""The nodes' texts in every language have the same shape; tests/comfyui holds the English ones against the nodes."""

import json
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
TRANSLATED = sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")


def texts(language: str) -> dict[tuple[str, ...], str]:
    """Every text by its path of keys."""
    return dict(_leaves(json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf8"))))


def _leaves(tree, path=()):
    if isinstance(tree, str):
        yield path, tree
    else:
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))


def test_there_are_two_languages_besides_english():
    assert len(TRANSLATED) >= 2


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_language_has_the_keys_of_english_and_every_tooltip_is_translated(language):
    english, translated = texts("en"), texts(language)
    assert list(translated) == list(english)
    for path, text in translated.items():
        assert text.strip(), path
        # Names stay: error messages, help pages and saved workflows use them.
        assert (text == english[path]) == (path[-1] in ("name", "display_name")), path


def test_every_help_page_shows_a_small_picture_of_its_node():
    pages = sorted((LOCALES.parent / "web" / "docs").glob("*.md"))
    assert pages
    for page in pages:
        assert f"(pictures/{page.stem}.webp)" in page.read_text(encoding="utf8"), page.name
        assert 1_000 < (page.parent / "pictures" / f"{page.stem}.webp").stat().st_size < 40_000, page.name
