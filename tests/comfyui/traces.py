"""What a run could leave behind on a model, in the process or among ComfyUI's loaded models."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import comfy.model_management
import torch

from . import host


class Snapshot:
    """A model as it was: its weights bit for bit, and everything that clones of its ModelPatcher inherit."""

    def __init__(self, model):
        self._model = model
        self._weights = {name: weight.clone() for name, weight in model.model.state_dict().items()}
        self._patches = _patches(model)

    def assert_same(self) -> None:
        """No weight, patch or wrapper is another, and no module carries a forward of its own."""
        after = self._model.model.state_dict()
        assert self._weights.keys() == after.keys()
        assert all(torch.equal(weight, after[name]) for name, weight in self._weights.items())
        assert not [name for name, module in self._model.model.named_modules() if "forward" in module.__dict__]
        assert _patches(self._model) == self._patches


def _patches(model) -> str:
    kinds = ("patches", "object_patches", "wrappers", "callbacks", "attachments", "additional_models", "injections")
    return repr([model.model_options, model.patches_uuid, *(getattr(model, kind) for kind in kinds)])


def alive() -> Counter:
    """How many objects of ours live, by class, and how many models ComfyUI holds."""
    gc.collect()
    # type(), because isinstance() would wake lazy modules
    ours = Counter(type(o).__name__ for o in gc.get_objects() if str(type(o).__module__).startswith(host.PACK))
    ours["loaded models"] = len(comfy.model_management.current_loaded_models)
    return ours


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
