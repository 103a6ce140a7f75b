"""The prompt an image was made from: as a user gives it, or as ComfyUI and `diffusion-blend generate` store it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...blend_core import BlendError
from ..generation.record import RECORD
from ..options import read_prompts

FOLLOWED = re.compile(r"positive(_\d+)?|conditioning(_\w+)?|cond\d")  # inputs that lead to the positive prompt
HANDED_ON = re.compile(r"positive|negative|cond")  # what is connected here is no sampler
TEXTS = ("text", "prompt", "positive", "t5xxl", "text_g", "clip_g", "text_l", "clip_l")  # a text encoder's
STRINGS = ("value", "string", "text")  # a text node's; not `prompt`, whose answer a language model writes
MODEL = 0x0110  # the EXIF tag that ComfyUI fills in WebP files

Inputs = Mapping[str, Mapping[str, Any]]


def given_prompts(path: Path, files: Sequence[str]) -> dict[str, str]:
    """file -> prompt, from a .json {file: prompt}, a .csv with columns file and prompt, or lines in `files`' order.

    Files that a .json or .csv leaves out have no prompt. Raises BlendError for files of another form, and for another
    count of lines.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        prompts = read_prompts(path)
        if len(prompts) != len(files):
            raise BlendError(
                f"{path} has {len(prompts)} prompts for {len(files)} images. Give one line per image, sorted by file "
                "name, or a .json {file: prompt} or .csv with the columns file and prompt."
            )
        return dict(zip(files, prompts, strict=True))
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            prompts = dict(json.loads(text))
        else:
            prompts = {row["file"]: row["prompt"] for row in csv.DictReader(text.splitlines(keepends=True))}
        if not all(isinstance(prompt, str) for prompt in prompts.values()):
            raise TypeError("a prompt is not text")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise BlendError(
            f"{path} holds no prompts ({type(error).__name__}: {error}). Give a .json {{file: prompt}}, a .csv with "
            "the columns file and prompt, or a .txt with one prompt per line."
        ) from error
    return {file: prompts[file] for file in files if file in prompts}


def stored_prompt(image: Image.Image) -> str | None:
    """The prompt in an opened image's metadata; None without, and where it is not clear."""
    text = image.info.get("prompt")
    if text is None and image.format != "PNG":  # a PNG would be decoded whole in search of EXIF
        text = str(image.getexif().get(MODEL, "")).removeprefix("prompt:")
    try:
        return graph_prompt(json.loads(text))
    except (ValueError, TypeError, RecursionError):  # another program's, or damaged
        return None


def recorded_prompts(folder: Path) -> dict[str, str]:
    """file -> prompt in the generation.json of a folder, of any format; nothing where no such file says it."""
    try:
        images = json.loads((folder / RECORD).read_text(encoding="utf8"))["images"]
        return {image["file"]: image["prompt"] for image in images}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def graph_prompt(graph: Any) -> str | None:
    """The positive prompt of a ComfyUI graph as its images hold it, {id: {"inputs": ...}}; None where it is not clear.

    Among what the saving nodes come from, a node with a conditioning that hands none on is a sampler or guider. Its
    conditioning leads to text encoders; the texts of a combination are joined. Samplers of different prompts: None.
    """
    nodes = graph.items() if isinstance(graph, dict) else ()
    inputs = {key: node["inputs"] for key, node in nodes if isinstance(node, dict)}
    inputs = {key: entry for key, entry in inputs.items() if isinstance(entry, dict)}
    linked = {link for key in inputs for link in _links(inputs, key)}
    savers = {key for key, entry in inputs.items() if "filename_prefix" in entry} or inputs.keys() - linked
    used, more = set(savers), savers
    while more := {link for key in more for link in _links(inputs, key)} - used:
        used |= more
    handed_on = {link for key in used for link in _links(inputs, key, HANDED_ON.search)}
    samplers = [key for key in used - handed_on if _links(inputs, key, FOLLOWED.fullmatch)]
    prompts = {", ".join(dict.fromkeys(_said(inputs, key, set()))) for key in samplers}
    return prompts.pop() or None if len(prompts) == 1 else None


def _links(inputs: Inputs, key: str, wanted: Callable[[str], Any] = lambda name: True) -> list[str]:
    """The nodes that a node's inputs come from; wanted: of which input names."""
    links = [_link(inputs, value) for name, value in inputs[key].items() if wanted(name)]
    return [link for link in links if link is not None]


def _link(inputs: Inputs, value: Any) -> str | None:
    """The node behind a value such as ["12", 0]; None for all else."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
    return str(value[0]) if pair and str(value[0]) in inputs else None


def _said(inputs: Inputs, key: str, seen: set[str]) -> list[str]:
    """The texts behind a node's conditioning. seen: nodes that are done, against cycles."""
    if key in seen:
        return []
    seen.add(key)
    upstream = _links(inputs, key, FOLLOWED.fullmatch)
    texts = [] if upstream else [_string(inputs, inputs[key].get(name), set()).strip() for name in TEXTS]
    text = next(filter(None, texts), None)
    if text is not None:
        return [text]
    if len(inputs[key]) == 1:  # a reroute, or a context
        upstream = _links(inputs, key)
    return [text for link in upstream for text in _said(inputs, link, seen)]


def _string(inputs: Inputs, value: Any, seen: set[str]) -> str:
    """A text, or that of the node it is connected to; empty where there is none."""
    key = _link(inputs, value)
    if key is None or key in seen:
        return value if isinstance(value, str) else ""
    seen.add(key)
    node = inputs[key]
    if "string_a" in node:  # Concatenate Text
        parts = [_string(inputs, node.get(name), seen) for name in ("string_a", "string_b")]
        return str(node.get("delimiter", "")).join(parts)
    values = list(node.values()) if len(node) == 1 and _links(inputs, key) else map(node.get, STRINGS)
    return next(filter(None, (_string(inputs, part, seen) for part in values)), "")
