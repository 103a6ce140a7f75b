"""Files of the lab: written all or nothing, images as PNG, and fingerprints of models."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from PIL import Image
from torch import Tensor


def write(path: Path, content: bytes) -> None:
    """All or nothing: an interrupted run leaves no half file that a later one would take for finished.

    Of processes that write at once, each has a partial file of its own.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any, errors: str = "strict") -> None:
    """The same of a JSON value in UTF-8. errors: what to do with text that has no UTF-8 form."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False).encode("utf8", errors))


def png(image: Tensor) -> bytes:
    """A PNG file of an image (3, h, w) in [0, 1]."""
    buffer = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def fingerprint(pipe) -> str:
    """A hash over the names, shapes and first values of all weights of a pipeline: instant for models of any size."""
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, value in part.state_dict().items():
                first = value.flatten()[:16].float().cpu().numpy().tobytes()
                digest.update(f"{name}.{key}{tuple(value.shape)}".encode() + first)
    return digest.hexdigest()
