"""Writes docs/graph.png and the help pages' pictures from a running ComfyUI: `python -m tests.browser.pictures`.

Run it where a node looks other than before; names such as DiffusionBlendDuel as arguments make their pictures alone.
The pictures on the help pages are of nodes that have run, on tiny random networks.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ..comfyui import host
from . import real
from .editor import CANVASES, CHROMIUM_OPTIONS, REPOSITORY, Editor, chromium_of, node_of, runnable

FOLDER = REPOSITORY / "web" / "docs" / "pictures"
SIZE = {"width": 1700, "height": 1200}
MOST_BYTES = 40_000
STEPS = 20
NODES = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf8"))
EXAMPLES = (
    "three_rewards",
    "best_of_four",
    "kl_dial",
    "regional_rewards",
    "msdda",
    "two_passes",
    "find_my_blend",
)


def picture_of(editor: Editor, node: str) -> Image.Image:
    """The first node of a type, without what lies around it."""
    editor.centre(node, scale=1.0)
    own = f'[data-node-id="{editor.evaluate(f"{node_of(node)}.id")}"]'
    element = editor.locator(own).first
    element.evaluate(
        "(own, others) => document.querySelectorAll(others).forEach((other) => (other.style.visibility = 'hidden'))",
        f"[data-node-id]:not({own})",
    )
    element.evaluate("(own) => (own.style.visibility = 'visible')")
    return Image.open(io.BytesIO(element.screenshot())).convert("RGB")


def write(picture: Image.Image, path: Path) -> None:
    """As a WebP below the limit."""
    picture.save(path, quality=80, method=6)
    assert path.stat().st_size < MOST_BYTES, f"{path.name} has {path.stat().st_size} bytes, at most {MOST_BYTES} wanted"


def help_pictures(editor: Editor, wanted: list[str]) -> None:
    """One picture per node: from an example that ran, else of the node alone."""
    missing = set(wanted)
    for example in EXAMPLES:
        graph = runnable(example, STEPS)
        found = missing & {node["type"] for node in graph["nodes"]}
        if not found:
            continue
        editor.load(graph)
        editor.run()
        for node in sorted(found):
            write(picture_of(editor, node), FOLDER / f"{node}.webp")
        missing -= found
    for node in sorted(missing):
        editor.evaluate("(type) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(type)); }", node)
        write(picture_of(editor, node), FOLDER / f"{node}.webp")


def graph_picture(editor: Editor) -> None:
    """The README's: the first example, as it opens."""
    editor.load("two_rewards")
    left, top, width, height = editor.evaluate("""() => {
        const boxes = app.graph.nodes.map((node) => node.getBounding());
        const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])) - 15);
        const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])) + 15);
        Object.assign(app.canvas.ds, { scale: 0.9, offset: [80 - left, 100 - top] });
        app.canvas.setDirty(true, true);
        return [80, 100, right - left, bottom - top].map((pixels) => pixels * 0.9);
    }""")
    editor.wait(1500)
    editor.evaluate("document.querySelectorAll('.actionbar-container').forEach((bar) => (bar.style.display = 'none'))")
    clip = {"x": left, "y": top, "width": min(width, SIZE["width"] - left), "height": min(height, SIZE["height"] - top)}
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")
    picture.quantize(128).save(REPOSITORY / "docs" / "graph.png", optimize=True)


def main(names: list[str]) -> int:
    """Make the pictures of these nodes, or all, with the first ComfyUI of this machine."""
    root = real.workspace()
    if root is None:
        print(f"no pictures made: no ComfyUI found; {host.HINT}")
        return 1
    FOLDER.mkdir(exist_ok=True)
    folder = tempfile.TemporaryDirectory()
    with folder, real.served(root, Path(folder.name) / "base") as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_of(playwright), args=CHROMIUM_OPTIONS)

        def opened(canvas: str) -> Editor:
            page = chromium.new_page(viewport=SIZE)
            return Editor(page, f"http://127.0.0.1:{server.port}", CANVASES[canvas])

        if not names:
            graph_picture(opened("classic"))
        help_pictures(opened("nodes2"), names or list(NODES))
        chromium.close()
    total = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    print(f"{len(names or NODES)} help pictures, {total / 1000:.0f} kB in all" + ("" if names else "; docs/graph.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
