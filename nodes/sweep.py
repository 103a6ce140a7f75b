"""Many blends from one, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..blend_core import BlendError
from ..blend_core.blend import parse_numbers
from ..blend_core.pareto import Scored, Trade, simplex_grid
from ..blend_core.pictures import sheet
from ..blend_core.pictures.pareto import draw
from .inputs import CATEGORY, blend_input
from .loaders import another_file, file_facts, files_like
from .output import CACHED_TOO, as_image, shown
from .rewards import as_markdown, one_batch
from .types import Basis, BlendSocket, LoRABlend, RewardLoRA, blend_of

MOST_BLENDS = 256  # a slip of the finger on a grid of many rewards is thousands of images
MOST_REWARDS = 6
_IN_A_ROW = 6  # labels, before a grid breaks into rows


class Sweep(io.ComfyNode):
    """The blends of a grid, one after another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendSweep",
            display_name="Blend Sweep",
            category=CATEGORY,
            description="A list of blends over a grid: what follows it in the graph runs once for each.",
            search_aliases=["sweep", "grid", "xy plot", "weights grid", "compare blends"],
            **CACHED_TOO,
            inputs=[
                blend_input("blend", "The reward LoRAs to sweep over, as blended by Blend Weights."),
                io.DynamicCombo.Input(
                    "over",
                    options=[
                        io.DynamicCombo.Option(
                            "preference",
                            [
                                io.Int.Input(
                                    "parts",
                                    default=4,
                                    min=1,
                                    max=50,
                                    tooltip="1: each reward alone. 4: weights 0, 0.25, 0.5, 0.75, 1. Two rewards "
                                    "give one blend more than there are parts, three at 4 parts give 15.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "alignment",
                            [
                                io.String.Input(
                                    "alignments",
                                    default="0, 0.5, 1, 1.5, 2",
                                    tooltip="0: the base model. 1: as trained. Each multiplies the distance that the "
                                    "blend already has.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "file",
                            [
                                io.Int.Input(
                                    "lora",
                                    default=1,
                                    min=1,
                                    max=MOST_REWARDS,
                                    tooltip="Which reward LoRA of the blend, counted from 1.",
                                ),
                                io.String.Input(
                                    "files",
                                    default="",
                                    tooltip="Files in models/loras that take its place one after another, such as "
                                    "run/checkpoint-*; * stands for what differs. Several are separated by commas.",
                                ),
                            ],
                        ),
                    ],
                    tooltip="preference: the weights of the rewards, at the blend's distance from the base. alignment: "
                    "the distance from the base, at the blend's weights. file: one of the LoRAs, such as the epochs of "
                    "a training.",
                ),
            ],
            outputs=[
                BlendSocket.Output(
                    display_name="blends",
                    is_output_list=True,
                    tooltip="Connect to a sampler: it runs once for each.",
                ),
                io.String.Output(
                    display_name="labels", is_output_list=True, tooltip="What each is. Connect to Pareto Plot."
                ),
            ],
        )

    @classmethod
    def execute(cls, blend: LoRABlend | Basis, over: dict) -> io.NodeOutput:
        """Lay out the grid and show it."""
        blend = blend_of(blend)
        axes = {"preference": by_preference, "alignment": by_alignment, "file": by_file}
        swept = axes[over["over"]](blend, **{name: value for name, value in over.items() if name != "over"})
        labels, blends = map(list, zip(*swept, strict=True))
        return shown("\n".join(labels), blends, labels)

    @classmethod
    def fingerprint_inputs(cls, over: dict | None = None, **_) -> tuple:
        """Changes when one of the swept files does, or another one fits the names."""
        pattern = (over or {}).get("files") or ""
        return tuple((name, file_facts(name)) for name in files_like(pattern))


def by_preference(blend: LoRABlend, parts: int) -> list[tuple[str, LoRABlend]]:
    """(label, blend) of every preference whose weights are multiples of 1 / parts."""
    if blend.regions or len(blend.schedule.blends) > 1:
        raise BlendError(
            "a schedule, window or region came, which has several preferences. Connect Blend Weights, or sweep over "
            "alignment."
        )
    grid = simplex_grid(len(blend.bases), parts)
    if len(grid) > MOST_BLENDS:
        raise BlendError(
            f"{parts} parts and {len(blend.bases)} rewards make {len(grid)} blends, more than {MOST_BLENDS}. Lower "
            "parts."
        )
    labels = [", ".join(f"{name} {w:g}" for name, w in zip(blend.names, weights, strict=True)) for weights in grid]
    return [(label, blend.preferring(weights)) for label, weights in zip(labels, grid, strict=True)]


def by_alignment(blend: LoRABlend, alignments: str) -> list[tuple[str, LoRABlend]]:
    """(label, blend) at every distance."""
    numbers = parse_numbers(alignments, "alignments", "blend", "0, 0.5, 1")
    if not numbers:
        raise BlendError(f"alignments are {alignments!r}, expected numbers such as 0, 0.5, 1. Write at least one.")
    return [(f"alignment {number:g}", blend.aligned(number)) for number in numbers]


def by_file(blend: LoRABlend, lora: int, files: str) -> list[tuple[str, LoRABlend]]:
    """(label, blend) with every file in the place of one LoRA of the blend, counted from 1."""
    if lora > len(blend.bases) or not isinstance(basis := blend.bases[lora - 1], RewardLoRA):
        raise BlendError(
            f"lora is {lora}, expected the number of a reward LoRA with a file, of {len(blend.bases)} in the blend "
            f"({', '.join(blend.names)}). Choose another."
        )
    names = files_like(files)
    if not names:
        raise BlendError("files is empty, expected names in models/loras such as run/checkpoint-*. Write at least one.")
    if len(names) > MOST_BLENDS:
        raise BlendError(f"files names {len(names)} files, more than {MOST_BLENDS}. Write a narrower pattern.")
    stems = [Path(name.replace("\\", "/")).stem for name in names]
    labels = stems if len(set(stems)) == len(stems) else names
    swept = ((label, another_file(basis, name)) for label, name in zip(labels, names, strict=True))
    return [(label, blend.replaced(lora - 1, replacement)) for label, replacement in swept]


class SweepGrid(io.ComfyNode):
    """The images of a sweep as one labelled picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendSweepGrid",
            display_name="Sweep Grid",
            category=CATEGORY,
            description="The images of a sweep as one picture, each blend's below its label.",
            search_aliases=["grid", "contact sheet", "xy plot", "compare images", "labelled grid"],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="The images of all blends, in the order of the labels, of one size."),
                io.String.Input("labels", force_input=True, tooltip="One per blend, from Blend Sweep."),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=MOST_BLENDS,
                    tooltip="How many labels stand next to each other. 0: all of up to 6, else as a square. Several "
                    "images of one blend stand below each other.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture. Connect to Save Image.")],
        )

    @classmethod
    def execute(cls, image: list[Tensor], labels: list[str], columns: Sequence[int] = (0,)) -> io.NodeOutput:
        """Deal the images out to the labels, and draw."""
        batch = one_batch(image)
        if len(batch) % len(labels):
            raise BlendError(
                f"{len(batch)} images came for {len(labels)} labels, expected equally many of each. Connect the images "
                "and the labels of one Blend Sweep."
            )
        of_each = len(batch) // len(labels)
        pictures = _pictures(batch)
        stacks = [pictures[i : i + of_each] for i in range(0, len(pictures), of_each)]
        square = len(labels) if len(labels) <= _IN_A_ROW else math.ceil(len(labels) ** 0.5)
        return io.NodeOutput(as_image(sheet.draw(stacks, labels, min(columns[0], len(labels)) or square)))


class ParetoPlot(io.ComfyNode):
    """Scores of many blends as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        template = io.Autogrow.TemplatePrefix(
            io.Float.Input(
                "scores",
                force_input=True,
                tooltip="One reward's scores of all images, from a Reward Scorer with that reward alone.",
            ),
            prefix="scores_",
            min=2,
            max=MOST_REWARDS,
        )
        return io.Schema(
            node_id="DiffusionBlendParetoPlot",
            display_name="Pareto Plot",
            category=CATEGORY,
            description="Rewards against one another, a point per blend: which blends no other one beats, and the "
            "hypervolume, one number for all of them.",
            search_aliases=["pareto", "front", "plot scores", "hypervolume", "trade-off"],
            **CACHED_TOO,
            is_input_list=True,
            inputs=[
                io.String.Input("labels", force_input=True, tooltip="One per blend, from Blend Sweep."),
                io.Autogrow.Input("scores", template=template),
                io.String.Input(
                    "names",
                    default="",
                    tooltip="What the rewards are called, in the order of the slots, such as calm, vivid.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The images that were scored, in the same order, for thumbnails."
                ),
                io.String.Input(
                    "reference",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="From where the hypervolume counts, one number per reward. Plots are comparable only at "
                    "one reference. Empty: the lowest mean of each reward.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The plot. Connect to Preview Image."),
                io.Float.Output(display_name="hypervolume", tooltip="Larger is better, at one reference."),
                io.String.Output(display_name="table", tooltip="Label, means and the front as a Markdown table."),
                io.String.Output(display_name="json", tooltip="The same for programs."),
            ],
        )

    @classmethod
    def execute(
        cls,
        labels: list[str],
        scores: dict[str, list[float]],
        names: list[str],
        image: list[Tensor] | None = None,
        reference: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        """Average over the images of each blend, and draw."""
        columns = [column for column in scores.values() if column]
        trade = traded(labels, columns, names[0], image, reference[0])
        best = ", ".join(trade.points[i].label for i in trade.front)
        text = f"hypervolume {trade.volume:.4g}\non the front: {best}"
        return shown(text, as_image(draw(trade)), trade.volume, as_markdown(table_of(trade)), trade.to_json())


def traded(labels: list[str], columns: list[list[float]], names: str, image: list | None, reference: str) -> Trade:
    """The points of a plot. columns: per reward, the scores of all images, blend after blend, equally many of each."""
    counts = sorted({len(column) for column in columns})
    if len(counts) > 1 or counts[0] % len(labels):
        raise BlendError(
            f"{', '.join(map(str, counts))} scores came for {len(labels)} labels. Connect Reward Scorers that see all "
            "images of the sweep, equally many of each blend."
        )
    images = counts[0] // len(labels)
    parts = [[column[i : i + images] for i in range(0, len(column), images)] for column in columns]
    pictures = _thumbnails(image, counts[0])[::images] if image else [None] * len(labels)
    points = tuple(
        Scored.of(label, part, picture)
        for label, part, picture in zip(labels, zip(*parts, strict=True), pictures, strict=True)
    )
    lowest = tuple(min(point.means[i] for point in points) for i in range(len(columns)))
    return Trade(_names(names, len(columns)), points, _reference(reference, len(columns)) or lowest)


def _names(text: str, count: int) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names and len(names) != count:
        raise BlendError(f"names are {text!r} for {count} rewards. Give one per connected slot of scores, or none.")
    return names or tuple(f"reward {i + 1}" for i in range(count))


def _reference(text: str, count: int) -> tuple[float, ...]:
    numbers = parse_numbers(text, "numbers of reference", "reward", "0, 0")
    if numbers and len(numbers) != count:
        raise BlendError(f"reference is {text!r} for {count} rewards. Give one number per reward, or none.")
    return tuple(numbers)


def _thumbnails(images: list[Tensor], count: int) -> list[Image.Image]:
    batch = one_batch(images)
    if len(batch) != count:
        raise BlendError(
            f"{len(batch)} images came with {count} scores. Connect the images as they went into Reward Scorer."
        )
    return _pictures(batch)


def _pictures(batch: Tensor) -> list[Image.Image]:
    return [Image.fromarray((pixels[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()) for pixels in batch]


def table_of(trade: Trade) -> list[list[str]]:
    """A heading, and a row per point."""
    rows = [["blend", *trade.names, "on the front"]]
    for i, point in enumerate(trade.points):
        rows.append([point.label, *(f"{mean:.4g}" for mean in point.means), "yes" if i in trade.front else ""])
    return rows
