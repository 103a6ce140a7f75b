"""docs/reward_loras.md is made from the catalogue."""

from diffusion_blend.blend_core.adapters.catalogue import catalogue
from diffusion_blend.lab.catalogue_page import PAGE, page


def test_the_page_says_what_the_catalogue_says():
    assert PAGE.read_text(encoding="utf-8") == page(catalogue().values()), (
        "docs/reward_loras.md is not what the catalogue makes. Run: python -m diffusion_blend.lab.catalogue_page"
    )


def test_every_entry_stands_on_the_page_once():
    text = page(catalogue().values())
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(catalogue())
