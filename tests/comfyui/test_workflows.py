"""What ships beside the nodes still speaks of today's nodes: example workflows, help pages, texts."""

import asyncio
import json

import pytest
from comfy_extras import nodes_canny, nodes_mask, nodes_primitive, nodes_sd3, nodes_video, nodes_wan

import nodes as core

from .host import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / "example_workflows").glob("*.json"))
SUBGRAPHS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
OPEN_LISTS = {"lora_name", *(f"lora_{i}" for i in range(1, 9)), "reward_name", "sampler_name", "scheduler"}
"""Of files, and of what ComfyUI offers."""


@pytest.fixture(scope="module")
def schemas(nodes):
    """The pack's schemas by node id, without those that stand for graphs of former ids alone."""
    declarations = [node.GET_SCHEMA() for node in nodes.values()]
    return {schema.node_id: schema for schema in declarations if not schema.is_deprecated}


@pytest.fixture(scope="module")
def core_nodes():
    """The ids of the nodes of ComfyUI's own that workflows may use."""

    async def extra(module):
        return await (await module.comfy_entrypoint()).get_node_list()

    modules = nodes_canny, nodes_mask, nodes_primitive, nodes_sd3, nodes_video, nodes_wan
    listed = [node.GET_SCHEMA().node_id for module in modules for node in asyncio.run(extra(module))]
    return {"MarkdownNote", *core.NODE_CLASS_MAPPINGS, *listed}


def test_the_names_of_the_workflows_which_the_editor_shows_as_titles_give_their_order():
    assert {path.stem[:2] for path in WORKFLOWS} == {f"{number:02}" for number in range(1, len(WORKFLOWS) + 1)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_shipped_workflow_matches_the_nodes_and_has_a_thumbnail(path, schemas, core_nodes):
    graph = json.loads(path.read_text(encoding="utf8"))
    assert path.with_suffix(".jpg").exists()
    ours = [node for node in graph["nodes"] if node["type"] in schemas]
    assert ours
    for node in graph["nodes"]:
        assert node["type"] in schemas or node["type"] in core_nodes
    for node in ours:
        known = {entry.id for entry in schemas[node["type"]].inputs}
        saved = {entry["name"].split(".")[0] for entry in node["inputs"]}
        assert saved == known


@pytest.mark.parametrize("path", SUBGRAPHS, ids=lambda path: path.stem)
def test_a_shipped_subgraph_matches_the_nodes_and_passes_on_what_it_names(path, schemas, core_nodes):
    graph = json.loads(path.read_text(encoding="utf8"))
    (outer,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and outer["title"] == inner["name"] == path.stem
    nodes = {node["id"]: node for node in inner["nodes"]}
    for node in nodes.values():
        assert node["type"] in schemas or node["type"] in core_nodes
        if node["type"] in schemas:
            known = {entry.id for entry in schemas[node["type"]].inputs}
            assert {entry["name"].split(".")[0] for entry in node["inputs"]} == known
    for number, name in outer["properties"]["proxyWidgets"]:
        assert name in [entry["name"] for entry in nodes[int(number)]["inputs"]]
    for link in inner["links"]:
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]


def words_of(entry):
    """What a help page must name: the input, its options, and the inputs that an option brings."""
    yield entry.id
    for option in () if entry.id in OPEN_LISTS else getattr(entry, "options", None) or ():
        yield getattr(option, "key", option)
        for inner in getattr(option, "inputs", ()):
            yield from words_of(inner)


def test_every_node_has_a_help_page_that_names_all_its_inputs_and_their_options(schemas):
    for node_id, schema in schemas.items():
        page = (REPOSITORY / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf8")
        missing = [word for entry in schema.inputs for word in words_of(entry) if word not in page]
        assert not missing, f"{node_id}: {missing}"


def inputs_of(entries, before=""):
    """Every input with its name in the texts, those that an option brings among them."""
    for entry in entries:
        yield f"{before}{entry.id}", entry
        for option in getattr(entry, "options", None) or ():
            yield from inputs_of(getattr(option, "inputs", ()), f"{before}{entry.id}_")


def test_the_english_texts_are_those_of_the_nodes(schemas):
    texts = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf8"))
    assert set(texts) == set(schemas)
    for node_id, schema in schemas.items():
        assert texts[node_id]["display_name"] == schema.display_name
        assert texts[node_id]["description"] == schema.description
        shown = {name: entry.get("tooltip") for name, entry in texts[node_id]["inputs"].items()}
        tips = {name: entry.tooltip for name, entry in inputs_of(schema.inputs)}
        assert {name: text for name, text in shown.items() if tips[name]} == {n: t for n, t in tips.items() if t}
        assert set(shown) == set(tips)
