"""Writes recording.json, what a real ComfyUI answers to its editor's start: `python -m tests.browser.record`.

Run it where a node's inputs or texts have changed, or the frontend's version in constraints.txt.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ..comfyui import host
from . import real, replay

GREETING = ("CLIPLoader", "VAELoader", "UNETLoader", "EmptySD3LatentImage", "ModelSamplingAuraFlow")
"""Nodes of the graph that the editor opens with."""


def wanted_nodes(known: list[str]) -> list[str]:
    """The pack's nodes, and those of the example workflows and of the editor's first graph."""
    graphs = [
        json.loads(path.read_text(encoding="utf8")) for path in replay.REPOSITORY.glob("example_workflows/*.json")
    ]
    used = {*GREETING, *(node["type"] for graph in graphs for node in graph["nodes"])}
    return sorted(name for name in known if name in used or name.startswith("DiffusionBlend"))


def record(server, version: str) -> dict:
    """The answers, without what is the machine's own."""
    nodes = server.get("/object_info")
    system = server.get("/system_stats")["system"]
    kept = {name: value for name, value in system.items() if name.endswith("_version") and "python" not in name}
    answers = {path: server.get(f"/api{path}") for path in ("/users", "/queue", "/jobs?limit=64")}
    return {
        "comfyui": version,
        "answers": {path.partition("?")[0]: answer for path, answer in answers.items()}
        | {
            "/system_stats": {"system": {**kept, "os": "linux", "argv": ["main.py"]}, "devices": []},
            "/node_replacements": {},
            "/global_subgraphs": {},
            "/object_info": {name: nodes[name] for name in wanted_nodes(nodes)},
        },
    }


def main() -> int:
    """Record the first ComfyUI of this machine."""
    root = real.workspace()
    if root is None:
        print(f"nothing recorded: no ComfyUI found; {host.HINT}")
        return 1
    with tempfile.TemporaryDirectory() as folder, real.served(root, Path(folder) / "base") as server:
        recorded = record(server, host.version_of(root))
    replay.RECORDING.write_text(_text(recorded), encoding="utf8")
    print(f"{replay.RECORDING.name}: ComfyUI {recorded['comfyui']}, {len(recorded['answers']['/object_info'])} nodes")
    return 0


def _text(recorded: dict) -> str:
    """JSON with one line per node, so that a change of one can be read."""
    answers = recorded["answers"]
    nodes = answers["/object_info"]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(node, ensure_ascii=False)}" for name, node in nodes.items())
    rest = {**recorded, "answers": {**answers, "/object_info": "HERE"}}
    return json.dumps(rest, indent=1, ensure_ascii=False).replace('"HERE"', f"{{\n{lines}\n}}") + "\n"


if __name__ == "__main__":
    sys.exit(main())
