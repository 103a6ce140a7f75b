"""The recorded answers are what a real ComfyUI gives, wherever one is there to ask."""

import json

import pytest

from ..comfyui import host
from . import real, replay
from .record import record

AGAIN = "record anew: python -m tests.browser.record"
LANGUAGES = sorted(folder.name for folder in (host.REPOSITORY / "locales").iterdir())


@pytest.fixture(scope="module")
def recording():
    return json.loads(replay.RECORDING.read_text(encoding="utf8"))


def test_the_nodes_are_recorded_as_a_real_server_describes_them(real_server, recording):
    version = host.version_of(real.workspace())
    if version != recording["comfyui"]:
        pytest.skip(f"recorded from ComfyUI {recording['comfyui']}, this is {version}")
    now = record(real_server, version)["answers"]
    assert list(now) == list(recording["answers"])
    then, nodes = recording["answers"]["/object_info"], now["/object_info"]
    assert [name for name in {**then, **nodes} if then.get(name) != nodes.get(name)] == [], AGAIN


def test_a_real_server_answers_with_the_packs_texts_in_every_language(real_server):
    served = real_server.get("/api/i18n")
    assert {"en", "es", "fr"} <= set(LANGUAGES)
    assert {language: served[language] for language in LANGUAGES} == replay.translations()


def test_a_real_server_lists_the_scripts_and_examples_at_the_same_addresses(real_server):
    listed = real_server.get("/api/extensions")
    addresses = [address for address in replay.scripts(replay.editor_files()) if replay.PACK in address]
    assert sorted(address for address in listed if replay.PACK in address) == sorted(addresses)
    for address in addresses:
        file = host.REPOSITORY / "web" / address.removeprefix(f"/extensions/{replay.PACK}/")
        assert real_server.read(address) == file.read_bytes()
    examples = sorted(path.stem for path in (host.REPOSITORY / "example_workflows").glob("*.json"))
    assert sorted(real_server.get("/api/workflow_templates")[replay.PACK]) == examples
