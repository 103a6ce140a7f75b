"""The catalogue of reward LoRAs to download, and which of its entries a file is."""

import json
import shutil
from pathlib import Path

import pytest
from diffusion_blend.blend_core.adapters import read_adapter
from diffusion_blend.blend_core.adapters.catalogue import catalogue, read_catalogue, recognised
from diffusion_blend.blend_core.adapters.files import sha256
from diffusion_blend.blend_core.errors import BlendError

from .lora_worlds import pair, write

ROOT = Path(__file__).parents[2]
MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ENTRIES = list(catalogue().values())
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def lora(path, seed=0):
    """A LoRA file; one of another seed has other bytes."""
    return write(path, pair(MODULE), {"seed": str(seed)})


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_every_entry_says_what_it_is_and_where_it_lies(entry):
    assert entry.name and entry.label and entry.base
    assert entry.page.startswith("https://") and " " not in entry.page
    assert all(len(digest) in (0, 64) for digest in entry.files.values())
    assert not (entry.url and len(entry.files) != 1)
    assert entry.rank is None or entry.rank > 0
    assert entry.kl_weight is None or entry.kl_weight >= 0


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_no_two_entries_are_named_alike_on_one_base(entry):
    others = [other for other in ENTRIES if other is not entry]
    assert not any(entry.names & other.names for other in others)
    assert not any(entry.label == other.label for other in others if other.base == entry.base)


def test_the_example_graphs_and_the_catalogue_give_one_address_for_one_file():
    """Where a graph names a file of the catalogue, hash and address are the catalogue's."""
    seen = 0
    for file in EXAMPLES:
        for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
            for model in node.get("properties", {}).get("models", []):
                named = [entry for entry in ENTRIES if Path(model["name"]).stem.lower() in entry.names]
                for entry in named:
                    seen += 1
                    assert model["url"].startswith(entry.page), (file.name, entry.name)
                    assert model.get("hash", "") in {"", *entry.files.values()}, (file.name, entry.name)
    assert seen


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("Wan2.1-Fun-1.3B-InP-MPS.safetensors", "mps-wan21-1.3b"),
        ("wan2.1-fun-1.3b-inp-mps.safetensors", "mps-wan21-1.3b"),
        ("video/Wan2.2-Fun-A14B-InP-low-noise-HPS2.1.safetensors", "hps21-wan22"),
        ("SD3.5M-FlowGRPO-GenEval/adapter_model.safetensors", "flow-grpo-geneval"),
        ("SD3.5M-FlowGRPO-Text.safetensors", "flow-grpo-text"),
        ("Auto/ARR-FLUX.1-dev/adapter_model.safetensors", "arr-flux"),
        ("spo_sdxl_10ep_4k-data_lora_webui.safetensors", "spo-sdxl"),
        ("Flow-OPD/anything.safetensors", None),
        ("adapter_model.safetensors", None),
        ("mine.safetensors", None),
    ],
)
def test_a_file_is_recognised_by_its_name_or_its_folders(tmp_path, place, name):
    recognition = recognised(lora(tmp_path / place))
    assert (recognition and recognition.entry.name) == name
    assert recognition is None or recognition.by == "name"
    assert recognition is None or name in str(recognition)


@pytest.fixture
def own_catalogue(tmp_path, monkeypatch):
    """A catalogue of one LoRA whose hash is known: (its file, the entry)."""
    file = lora(tmp_path / "published" / "beauty.safetensors")
    table = tmp_path / "catalogue.json"
    entry = {"name": "beauty", "label": "beauty", "base": "SD 1.5", "kl_weight": 0.02, "repository": "a/b"}
    table.write_text(json.dumps([entry | {"files": {file.name: sha256(file)}}]))
    entries = read_catalogue(table)
    monkeypatch.setattr("diffusion_blend.blend_core.adapters.catalogue.catalogue", lambda: entries)
    return file, entries["beauty"]


def test_a_file_is_recognised_by_its_hash_under_any_name(own_catalogue, tmp_path):
    file, entry = own_catalogue
    renamed = shutil.copy(file, tmp_path / "mine.safetensors")
    for path in (file, renamed):
        assert recognised(path).entry is entry
        assert recognised(path).by == "hash"


def test_a_name_alone_is_not_enough_where_a_hash_is_known(own_catalogue, tmp_path):
    assert recognised(lora(tmp_path / "other" / "beauty.safetensors", seed=5)) is None


def test_a_file_that_changes_is_read_anew(own_catalogue, tmp_path):
    file, entry = own_catalogue
    path = lora(tmp_path / "mine.safetensors", seed=5)
    assert recognised(path) is None
    shutil.copy2(file, path)
    assert recognised(path).entry is entry


def test_an_entry_that_cannot_be_read_is_named(tmp_path):
    table = tmp_path / "catalogue.json"
    good = {"name": "a", "label": "a", "base": "SDXL", "repository": "a/b"}
    for entries, words in (
        ([good | {"licence_text": "MIT"}], "licence_text"),
        ([good, good], "a stands there twice"),
        ([good | {"repository": ""}], "either a repository or an url"),
        ([{"label": "a"}], "name"),
    ):
        table.write_text(json.dumps(entries))
        with pytest.raises(BlendError, match=words):
            read_catalogue(table)


def test_a_recognised_files_label_is_what_read_adapter_calls_it(tmp_path):
    path = lora(tmp_path / "SD3.5M-FlowGRPO-GenEval" / "adapter_model.safetensors")
    assert read_adapter(path).label.lower() in recognised(path).entry.names
