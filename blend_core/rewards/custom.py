"""Rewards of the user's own: one Python function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import BlendError
from .contract import Card, Reward


class Custom(Reward):
    """function(images) or function(images, prompts) -> (batch,), as a user wrote it.

    images: (batch, 3, height, width) in [0, 1].  prompts: one per image.  The function may carry attributes:
    `usual_range` (two numbers), `differentiable` (default False), `licence`.
    """

    def __init__(self, name: str, function: Callable[..., Tensor]):
        super().__init__(
            Card(
                name,
                (inspect.getdoc(function) or "a reward of your own").split("\n")[0],
                _range_of(name, function),
                bool(getattr(function, "differentiable", False)),
                len(inspect.signature(function).parameters) > 1,
                str(getattr(function, "licence", "your own")),
            )
        )
        self.function = function

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The function's scores. Raises BlendError where they are not one finite number per image."""
        scores = self.function(images, prompts) if self.card.reads_prompt else self.function(images)
        scores = torch.as_tensor(scores, device=images.device)
        if scores.shape != images.shape[:1] or not torch.isfinite(scores).all():
            raise BlendError(
                f"the reward {self.card.name} gave {_described(scores)} for {len(images)} images, expected a tensor of "
                f"shape ({len(images)},) with finite numbers. Mend the function."
            )
        return scores


def _range_of(name: str, function: Callable) -> tuple[float, float] | None:
    stated = getattr(function, "usual_range", None)
    if stated is None:
        return None
    try:
        low, high = map(float, stated)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise BlendError(f"{name}: usual_range is {stated!r}, expected two numbers, the lower one first. Correct it.")
    return low, high


def _described(scores: Tensor) -> str:
    return f"shape {tuple(scores.shape)}" + ("" if torch.isfinite(scores).all() else " with NaN or infinite values")


def is_custom(name: str) -> bool:
    """Whether a reward's name is a place: file.py, file.py:function or module:function."""
    return ":" in name or name.endswith(".py")


def load_custom(name: str) -> Reward:
    """The reward at `path/file.py`, `path/file.py:function` or `package.module:function`.

    This runs that code: give only places you trust. Raises BlendError where there is no such function.
    """
    place, _, function = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    if not place.endswith(".py"):
        return Custom(name, _function_of(_imported(place), function, name))
    path = Path(place).expanduser()
    return Custom(path.name + (f":{function}" if function else ""), _function_of(_from_file(path), function, name))


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BlendError(f"{path} is no file. Give the path of a Python file with one function, the reward.")
    spec = importlib.util.spec_from_file_location(f"diffusion_blend_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BlendError(f"{path} is no Python file. Give the path of a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code raises
        raise BlendError(f"{path} cannot be run: {type(error).__name__}: {error}. Mend the file.") from error
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BlendError(
            f"{name} cannot be imported ({error}). Install the package that holds it, or give the path of a .py file."
        ) from error


def _function_of(module: ModuleType, function: str, name: str) -> Callable[..., Tensor]:
    functions = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    if not function and len(functions) == 1:
        return next(iter(functions.values()))
    if callable(getattr(module, function, None) if function else None):
        return getattr(module, function)
    listed = ", ".join(functions) or "none"
    raise BlendError(
        f"{name} does not name one function: its public functions are {listed}. Write file.py:function, and let the "
        "function take images (and prompts)."
    )
