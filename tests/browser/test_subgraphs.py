"""The subgraphs of the pack in the editor: each opens, shows its inputs, and runs between core's nodes."""

import json

from .editor import REPOSITORY, runnable

SUBGRAPHS = {path.stem: path for path in (REPOSITORY / "subgraphs").glob("*.json")}
SHOWN = """(type) => {
    const node = app.graph.nodes.find((node) => node.type === type);
    const dials = node.widgets.map(({ name, label }) => label ?? name);
    return [node.title, dials.filter((name) => !name.startsWith("control"))];
}"""


def between(name):
    """The example best_of_four with a subgraph in the place of its middle, on tiny files."""
    graph, content = runnable("best_of_four"), json.loads(SUBGRAPHS[name].read_text(encoding="utf8"))
    (inner,) = content["definitions"]["subgraphs"]
    (outer,) = content["nodes"]
    outer["id"] = 100
    nodes = {node["type"]: node for node in graph["nodes"]}
    positive, negative = (node["id"] for node in graph["nodes"] if node["type"] == "RandomPrompt")
    dropped = {"DiffusionBlendRewardScorer", "DiffusionBlendPickBest", "DiffusionBlendLoadRewardModel", "MarkdownNote"}
    checkpoint, sampler, save = (nodes[kind]["id"] for kind in ("CheckpointLoaderSimple", "KSampler", "SaveImage"))
    decode, latent = nodes["VAEDecode"]["id"], nodes["EmptyLatentImage"]["id"]
    if name == "Two rewards and a dial":
        wires = [(checkpoint, 0, 100, "model"), (100, 0, sampler, "model"), (positive, 0, sampler, "positive")]
        wires += [(negative, 0, sampler, "negative"), (latent, 0, sampler, "latent_image")]
        wires += [(sampler, 0, decode, "samples"), (checkpoint, 2, decode, "vae"), (decode, 0, save, "images")]
    else:
        dropped |= {"KSampler", "VAEDecode", "EmptyLatentImage"}
        wires = [(checkpoint, 0, 100, "model"), (positive, 0, 100, "positive"), (negative, 0, 100, "negative")]
        wires += [(checkpoint, 2, 100, "vae"), (100, 0, save, "images")]
        for node in inner["nodes"]:
            if node["type"] == "EmptyLatentImage":
                node["widgets_values"][:2] = [64, 64]
            if node["type"] == "KSampler":
                node["widgets_values"][2] = 4
    graph["nodes"] = [node for node in graph["nodes"] if node["type"] not in dropped] + [outer]
    by_id = {node["id"]: node for node in graph["nodes"]}
    for node in graph["nodes"]:
        for entry in node.get("inputs", []):
            entry["link"] = None
        for entry in node.get("outputs", []):
            entry["links"] = []
    graph["links"] = []
    for number, (origin, slot, target, entry) in enumerate(wires, start=1):
        place = [one["name"] for one in by_id[target]["inputs"]].index(entry)
        by_id[target]["inputs"][place]["link"] = number
        by_id[origin]["outputs"][slot]["links"].append(number)
        graph["links"].append([number, origin, slot, target, place, by_id[origin]["outputs"][slot]["type"]])
    return graph | {"definitions": content["definitions"], "last_node_id": 100, "last_link_id": len(wires)}


DIALS = {
    "Two rewards and a dial": ["first reward", "second reward", "weights", "alignment", "evaluation"],
    "Best of four by reward": [
        "prompt for the reward", "reward", "width", "height", "images", "seed", "steps", "cfg",
    ],
}  # fmt: skip
IMAGES = {"Two rewards and a dial": 4, "Best of four by reward": 1}


def test_a_subgraph_shows_its_dials_and_runs(visit):
    opened = visit("best_of_four")
    for name, dials in DIALS.items():
        graph = between(name)
        opened.load(graph)
        assert opened.evaluate(SHOWN, graph["definitions"]["subgraphs"][0]["id"]) == [name, dials]
        opened.run()
        outputs = [detail.get("output") or {} for kind, detail in opened.events if kind == "executed"]
        saved = [output["images"] for output in outputs if "images" in output]
        assert len(saved[-1]) == IMAGES[name], name


def test_subgraphs_are_found_as_nodes_are(visit):
    editor = visit("kl_dial")
    editor.evaluate("app.graph.clear()")
    search = editor.node_search()
    for name in DIALS:
        search.fill(name)
        search.page.get_by_role("option", name=name).first.wait_for()
