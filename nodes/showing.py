"""What nodes show: text on themselves, and pictures as ComfyUI passes them on."""

from __future__ import annotations

import numpy
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer
from torch import Tensor


def shown(node: type[io.ComfyNode], text: str, *outputs, editor: dict | None = None) -> io.NodeOutput:
    """`outputs`, with `text` on the node in the editor and in the prompt's history.

    editor: plain data for this node's script in web/, which may draw it.

    The editor draws a node's text output only for its own preview nodes; on any other it draws progress text.
    """
    hidden, server = getattr(node, "hidden", None), getattr(PromptServer, "instance", None)
    if server is not None and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)
    data = {} if editor is None else {"diffusion_blend": (editor,)}
    return io.NodeOutput(*outputs, ui=ui.PreviewText(text).as_dict() | data)


def as_image(picture: Image.Image) -> Tensor:
    """An IMAGE (1, height, width, 3) in [0, 1]."""
    return torch.from_numpy(numpy.array(picture)).float()[None] / 255
