"""Writes the pictures of the README, guides and help pages, and the examples' thumbnails.

`python -m tests.browser.pictures`, where a node looks other than before; names such as DiffusionBlendDuel (a node) and
kl_dial (an example) as arguments make their pictures alone. Graphs are shown as they open. Nodes are shown after a run,
in a running ComfyUI, on tiny random networks. A thumbnail has the title of its example and the node that it is about.
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
SCALE, MARGIN, BARS = 0.8, 20, (110, 130)  # of a graph's picture; pixels around it; what the editor's bars take
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
    "one_node": "DiffusionBlendApplyLoRAs",
    "video": "DiffusionBlendLoadRewardLoRA",
}
"""What each example is about."""
HELP = ("three_rewards", "best_of_four", "kl_dial", "regional_rewards", "msdda", "two_passes", "find_my_blend", "sweep")
"""Examples whose nodes are on the help pages, the first that has a node."""
IN_GUIDES = ("kl_dial", "three_rewards", "best_of_four", "sweep", "regional_rewards", "one_node", "video")
GRAPHS = {"two_rewards": "graph.png", **{example: f"guides/pictures/{example}.png" for example in IN_GUIDES}}
"""Examples whose graphs the README and the guides show, and the files below docs."""
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
    for example in HELP if missing else ():
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


def thumbnails(editor: Editor, wanted: list[str]) -> None:
    """Beside the examples' files."""
    for example in wanted:
        editor.load(runnable(example, STEPS))
        editor.run()
        title = EXAMPLES[example]
        path = REPOSITORY / "example_workflows" / f"{title}.jpg"
        thumbnail(title, picture_of(editor, ABOUT[example])).save(path, quality=88, optimize=True)


def graph_picture(editor: Editor, example: str) -> None:
    """The README's or a guide's: an example as it opens."""
    editor.load(example)
    boxes = editor.evaluate("app.graph.nodes.map((node) => [...node.getBounding()])")
    left, top = (min(box[axis] for box in boxes) - MARGIN for axis in (0, 1))
    size = [SCALE * (max(box[axis] + box[axis + 2] for box in boxes) + MARGIN - (left, top)[axis]) for axis in (0, 1)]
    editor.page.set_viewport_size({"width": round(size[0]) + BARS[0], "height": round(size[1]) + sum(BARS)})
    editor.evaluate(
        """([scale, left, top]) => {
            Object.assign(app.canvas.ds, { scale, offset: [left, top] });
            app.canvas.setDirty(true, true);
        }""",
        [SCALE, BARS[0] / SCALE - left, BARS[1] / SCALE - top],
    )
    editor.wait(1500)
    editor.evaluate("document.querySelectorAll('.actionbar-container').forEach((bar) => (bar.style.display = 'none'))")
    clip = {"x": BARS[0], "y": BARS[1], "width": size[0], "height": size[1]}
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")
    picture.quantize(128).save(REPOSITORY / "docs" / GRAPHS[example], optimize=True)


def main(names: list[str]) -> int:
    """Make the pictures of these nodes and examples, or all, with the first ComfyUI of this machine."""
    nodes, examples = [[name for name in names or known if name in known] for known in (NODES, EXAMPLES)]
    root = real.workspace()
    if root is None:
        print(f"no pictures made: no ComfyUI found; {host.HINT}")
        return 1
    FOLDER.mkdir(exist_ok=True)
    (REPOSITORY / "docs" / "guides" / "pictures").mkdir(exist_ok=True)
    folder = tempfile.TemporaryDirectory()
    with folder, real.served(root, Path(folder.name) / "base") as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_of(playwright), args=CHROMIUM_OPTIONS)

        def opened(canvas: str) -> Editor:
            page = chromium.new_page(viewport=SIZE)
            return Editor(page, f"http://127.0.0.1:{server.port}", CANVASES[canvas])

        classic = opened("classic")
        for example in examples:
            if example in GRAPHS:
                graph_picture(classic, example)
        nodes2 = opened("nodes2")
        thumbnails(nodes2, examples)
        help_pictures(nodes2, nodes)
        chromium.close()
    total = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    print(f"{len(nodes)} help pictures, {total / 1000:.0f} kB in all; {len(examples)} thumbnails")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
