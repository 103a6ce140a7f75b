"""Writes docs/graph.png, the help pages' pictures and the examples' thumbnails: `python -m tests.browser.pictures`.

Run it where a node looks other than before; names such as DiffusionBlendDuel as arguments make their pictures alone.
The pictures are of nodes that have run, in a running ComfyUI, on tiny random networks. A thumbnail has the title of its
example and the node that it is about.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from ..comfyui import host
from . import real
from .editor import CANVASES, CHROMIUM_OPTIONS, EXAMPLES, REPOSITORY, Editor, chromium_of, node_of, runnable

FOLDER = REPOSITORY / "web" / "docs" / "pictures"
SIZE = {"width": 1700, "height": 1200}
MOST_BYTES = 40_000
STEPS = 20
NODES = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf8"))
ABOUT = {
    "two_rewards": "DiffusionBlendBlendWeights",
    "kl_dial": "DiffusionBlendKLInterpolate",
    "three_rewards": "DiffusionBlendBlendWeights",
    "best_of_four": "DiffusionBlendRewardScorer",
    "sweep": "PreviewImage",
    "find_my_blend": "DiffusionBlendDuel",
    "regional_rewards": "DiffusionBlendRegion",
    "controlnet": "ControlNetApplyAdvanced",
    "two_passes": "DiffusionBlendApply",
    "msdda": "DiffusionBlendMSDDAKSampler",
}
"""What each example is about."""
HELP = ("three_rewards", "best_of_four", "kl_dial", "regional_rewards", "msdda", "two_passes", "find_my_blend", "sweep")
"""Examples whose nodes are on the help pages, the first that has a node."""
THUMBNAIL, EDGE, INK, GROUND = (720, 480), 28, "#f2f2f2", "#202124"


def picture_of(editor: Editor, node: str) -> Image.Image:
    """The first node of a type, without what lies around it."""
    editor.centre(node, scale=1.0)
    selector = f'[data-node-id="{editor.evaluate(f"{node_of(node)}.id")}"]'
    element = editor.locator(selector).first
    element.evaluate(
        "(own, others) => document.querySelectorAll(others).forEach((other) => (other.style.visibility = 'hidden'))",
        f"[data-node-id]:not({selector})",
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
    for example in HELP:
        graph = runnable(example, STEPS)
        nodes = missing & {node["type"] for node in graph["nodes"]}
        if not nodes:
            continue
        editor.load(graph)
        editor.run()
        for node in sorted(nodes):
            write(picture_of(editor, node), FOLDER / f"{node}.webp")
        missing -= nodes
    for node in sorted(missing):
        editor.evaluate("(type) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(type)); }", node)
        write(picture_of(editor, node), FOLDER / f"{node}.webp")


def thumbnail(title: str, node: Image.Image) -> Image.Image:
    """The title on the left, the node on the right."""
    card = Image.new("RGB", THUMBNAIL, GROUND)
    width, height = THUMBNAIL[0] * 5 // 9 - EDGE, THUMBNAIL[1] - 2 * EDGE
    node = node.copy()
    scale = min(width / node.width, height / node.height)
    node = node.resize((round(node.width * scale), round(node.height * scale)), Image.Resampling.LANCZOS)
    left = THUMBNAIL[0] - EDGE - (width + node.width) // 2
    card.paste(node, (left, (THUMBNAIL[1] - node.height) // 2))
    words = textwrap.fill(title.partition(" ")[2], 13)
    ImageDraw.Draw(card).multiline_text((EDGE, EDGE + 8), words, INK, ImageFont.load_default(38), spacing=12)
    return card


def thumbnails(editor: Editor) -> None:
    """Beside the examples' files."""
    for example, node in ABOUT.items():
        editor.load(runnable(example, STEPS))
        editor.run()
        title = EXAMPLES[example]
        path = REPOSITORY / "example_workflows" / f"{title}.jpg"
        thumbnail(title, picture_of(editor, node)).save(path, quality=88, optimize=True)


def graph_picture(editor: Editor) -> None:
    """The README's: the first example, as it opens."""
    editor.load("two_rewards")
    left, top, width, height = editor.evaluate(
        """(most) => {
        const boxes = app.graph.nodes.map((node) => node.getBounding());
        const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])) - 15);
        const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])) + 15);
        const scale = Math.min(0.9, most / (right - left + 80));
        Object.assign(app.canvas.ds, { scale, offset: [80 - left, 110 / scale - top] });
        app.canvas.setDirty(true, true);
        return [80 * scale, 110, (right - left) * scale, (bottom - top) * scale];
    }""",
        SIZE["width"],
    )
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
            thumbnails(opened("nodes2"))
        help_pictures(opened("nodes2"), names or list(NODES))
        chromium.close()
    total = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    more = "" if names else "; docs/graph.png and thumbnails"
    print(f"{len(names or NODES)} help pictures, {total / 1000:.0f} kB in all{more}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
