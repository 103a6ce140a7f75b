"""A page of ComfyUI's editor, as the tests drive it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 180  # seconds
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.45.0",
    "Comfy.Minimap.Visible": False,
    "Comfy.Locale": "en",  # a server keeps what the test before has set
}
EXAMPLES = {
    "two_rewards": "01 Two rewards and a dial",
    "kl_dial": "02 How far from the base model",
    "three_rewards": "03 Three rewards for the time of one",
    "best_of_four": "04 Best of four by reward",
    "sweep": "05 Which weights are worth choosing",
    "find_my_blend": "06 Find my blend by clicks",
    "regional_rewards": "07 Each reward where you paint",
    "controlnet": "08 Blend under ControlNet",
    "two_passes": "09 One blend, two passes",
    "msdda": "10 Rewards trained with unequal noise",
    "one_node": "11 Two rewards on SDXL in one node",
    "video": "12 Two rewards on a video",
}
"""The example graphs' files by short names; the editor shows the files' names as titles, in their order."""
CANVASES = {"classic": {"Comfy.VueNodes.Enabled": False}, "nodes2": {"Comfy.VueNodes.Enabled": True}}
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SEEDS = itertools.count()
PROMPTS = {"v1-5": (768, 0), "sd_xl": (2048, 1280), "sd3.5": (4096, 2048), "wan2.2": (4096, 0)}
"""Widths of tokens and of the pooled prompt, by how the names of the networks' files begin."""
SMALL = {"width": 64, "height": 64, "length": 5}
READY = "!!window.LiteGraph?.registered_node_types?.DiffusionBlendKSampler && !!window.app?.graph"


def chromium_of(playwright) -> str | None:
    """A Chromium at CHROMIUM, on the path, or where `playwright install chromium` puts it."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, CHROMIUM_NAMES), playwright.chromium.executable_path]
    return next((path for path in candidates if path and Path(path).is_file()), None)


class Editor:
    """A page: `page` is Playwright's, `messages` what its console said, `events` what the last run told it.

    settings: the editor's own, by their ids.  before: a script that runs when the editor is up.
    """

    def __init__(self, page, address: str, settings: dict, before: str = "0"):
        self.page, self.messages, self.events = page, [], []
        _post(f"{address}/api/settings", {**QUIET, **settings})
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: self.messages.append(message.text))
        page.goto(address)
        self._come_up()
        page.evaluate(before)

    def _come_up(self) -> None:
        self.page.wait_for_function(READY)
        self.wait(1500)

    def reload(self) -> None:
        """Reload the page."""
        self.wait(1000)  # the editor keeps drafts of open workflows with a delay
        self.page.reload()
        self._come_up()

    def wait(self, milliseconds: int) -> None:
        """Give the editor time: it follows widgets by looking at them."""
        self.page.wait_for_timeout(milliseconds)

    def evaluate(self, script: str, argument=None):
        """The value of a script in the page."""
        return self.page.evaluate(script, argument)

    def locator(self, selector: str):
        """Playwright's locator."""
        return self.page.locator(selector)

    def load(self, graph: str | dict) -> None:
        """Open a graph, or the example of that name."""
        self.evaluate("(graph) => app.loadGraphData(graph)", content_of(graph) if isinstance(graph, str) else graph)
        self.wait(1000)
        self.page.keyboard.press("Escape")  # the list of missing models, where there is one

    def centre(self, node: str, scale: float = 1.2) -> None:
        """Show the first node of a type."""
        self.evaluate(
            """([type, scale]) => {
                const [x, y] = app.graph.nodes.find((node) => node.type === type).pos;
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset[0] = 480 / scale - x;
                app.canvas.ds.offset[1] = 180 / scale - y;
                app.canvas.setDirty(true, true);
            }""",
            [node, scale],
        )
        self.wait(1000)

    def shown(self, node: str) -> list[str]:
        """The texts on the nodes of a type that are drawn, as a person reads them."""
        self.wait(600)
        texts = self.evaluate(
            """(type) => app.graph.nodes.filter((node) => node.type === type).map((node) => {
                const text = node.widgets.find(({ name }) => name === "shown_controls").element.querySelector("p");
                return text?.isConnected && text.offsetHeight > 0 ? text.innerText : "";
            })""",
            node,
        )
        return [text for text in texts if text]

    def value(self, node: str, widget: str):
        """The value of a widget of the first node of a type."""
        return self.evaluate(f"{widget_of(node, widget)}.value")

    def saved(self, node: str) -> list:
        """What a saved workflow would hold of that node."""
        return self.evaluate(f"app.graph.serialize().nodes.find((node) => node.type === '{node}').widgets_values")

    def drag(self, *points) -> None:
        """Press at the first point, go by the others, let go."""
        mouse = self.page.mouse
        mouse.move(*points[0])
        mouse.down()
        for point in points[1:]:
            mouse.move(*point, steps=4)
        mouse.up()
        self.wait(600)

    def run(self, press: Callable[[], None] | None = None) -> None:
        """Press Run, or what `press` does, and wait for the graph's good end."""
        self.evaluate("""() => {
            const kinds = window.events ? [] : ["progress", "executed", "execution_success", "execution_error"];
            window.events = [];
            for (const kind of kinds)
                app.api.addEventListener(kind, ({ detail }) => window.events.push([kind, detail]));
        }""")
        (press or self.locator("[data-testid=queue-button]").click)()
        self.page.wait_for_function("window.events.some(([kind]) => kind.startsWith('execution_'))")
        self.wait(1500)
        self.events = self.evaluate("window.events")
        assert self.events[-1][0] == "execution_success", self.events[-1]

    def node_search(self):
        """The open search for nodes: Playwright's locator of its field.

        A busy machine may take the two clicks for single ones, so they are repeated until it opens.
        """
        field = self.page.get_by_role("combobox", name="Add a node")
        for waits in range(5 * PATIENCE):
            if field.is_visible():
                return field
            if waits % 30 == 0:
                self.page.keyboard.press("Escape")  # whatever a single click opened
                self.page.mouse.dblclick(700, 600)
            self.wait(200)
        raise AssertionError(f"the search for nodes did not open in {PATIENCE} s: {self.messages[-5:]}")

    def undo(self) -> None:
        """Take the last change back."""
        self.evaluate("document.activeElement.blur()")
        self.page.keyboard.press("Control+z")
        self.wait(1500)


def _post(address: str, body: dict) -> None:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()


def node_of(node: str) -> str:
    """The script that finds the first node of a type."""
    return f"app.graph.nodes.find((node) => node.type === '{node}')"


def widget_of(node: str, widget: str) -> str:
    """The script that finds a widget of it."""
    return f"{node_of(node)}.widgets.find(({{ name }}) => name === '{widget}')"


def content_of(graph: str) -> dict:
    """An example graph's file."""
    return json.loads((REPOSITORY / "example_workflows" / f"{EXAMPLES[graph]}.json").read_text(encoding="utf8"))


def runnable(example: str, steps: int = 4) -> dict:
    """An example that runs on tiny files: new random prompts, small pictures, formulas for rewards."""
    graph = content_of(example)
    files = [model["name"] for node in graph["nodes"] for model in node["properties"].get("models", ())]
    widths = next(widths for start, widths in PROMPTS.items() if any(file.startswith(start) for file in files))
    numbers = {"Steps": steps, "Low noise from step": steps // 2}
    for node in graph["nodes"]:
        if node["type"] == "CLIPTextEncode":
            node |= {"type": "RandomPrompt", "inputs": [], "widgets_values": [next(SEEDS), "fixed", *widths]}
        elif node["type"] == "PrimitiveInt":
            node["widgets_values"][0] = numbers.get(node["title"], node["widgets_values"][0])
        else:
            for place, name in enumerate(node.get("widgets_values_named", ())):
                node["widgets_values"][place] = {**SMALL, "steps": steps}.get(name, node["widgets_values"][place])
    kinds = {node["id"]: node["type"] for node in graph["nodes"]}
    graph["links"] = [link for link in graph["links"] if kinds[link[3]] != "RandomPrompt"]
    return graph


def saved_values(graph: str, node: str) -> list:
    """What the file of an example graph holds of the first node of a type."""
    return next(entry["widgets_values"] for entry in content_of(graph)["nodes"] if entry["type"] == node)


def middle(locator) -> tuple[float, float, float]:
    """x and y of an element's middle, and its width."""
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]
