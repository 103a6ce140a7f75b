"""What nodes show: text on themselves, and pictures as ComfyUI passes them on."""

from __future__ import annotations

import numpy
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

CACHED_TOO = {"has_intermediate_output": True} if "has_intermediate_output" in io.Schema.__dataclass_fields__ else {}
"""Schema fields of a node that shows something: ComfyUI then sends it again where a node is answered from its cache."""


def shown(text: str, *outputs, editor: dict | None = None) -> io.NodeOutput:
    """`outputs`, with `text` for the editor, where web/shown.js writes it on the node, and in the prompt's history.

    editor: plain data for this node's script in web/, which may draw it.
    """
    data = {} if editor is None else {"diffusion_blend": (editor,)}
    return io.NodeOutput(*outputs, ui=ui.PreviewText(text).as_dict() | data)


def as_image(picture: Image.Image) -> Tensor:
    """An IMAGE (1, height, width, 3) in [0, 1]."""
    return torch.from_numpy(numpy.array(picture)).float()[None] / 255
