"""What a weight file holds: safetensors with their header, pickle containers through weights_only alone."""

import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import BlendError

_WRAPPERS = ("policy_state_dict", "state_dict", "lora", "module")  # the first is UniRL's
_LORA_CONFIG = "lora_config"  # next to UniRL's policy_state_dict: rank and alpha
LARGEST_TENSOR = 2**28  # numbers; a factor of rank 1024 on a width of 25,600 is a tenth of it


@dataclass(frozen=True)
class WeightFile:
    """An opened file: its keys at once, its tensors when asked for (a checkpoint of 20 GB is refused by its keys).

    lora_config: what a checkpoint itself says of its LoRA.
    """

    path: Path
    keys: tuple[str, ...]
    metadata: Mapping[str, str]
    read: Callable[[Iterable[str]], dict[str, Tensor]]
    lora_config: Mapping[str, Any] = field(default_factory=dict)


def _refuse_giant(path: Path, key: str, shape: Iterable[int]) -> None:
    """Before it is read: a file may be sparse on the disk and terabytes in memory."""
    shape = tuple(shape)
    if math.prod(shape) > LARGEST_TENSOR:
        raise BlendError(
            f"{path.name}: {key!r} has the shape {shape}, {math.prod(shape):.3g} numbers, expected at most "
            f"{LARGEST_TENSOR:.3g} of a factor. It is no LoRA: choose another file."
        )


def open_safetensors(path: Path) -> WeightFile:
    """The file by its header; every tensor is read when it is asked for. Raises BlendError for a damaged file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys, metadata = tuple(file.keys()), dict(file.metadata() or {})
    except PermissionError:
        raise
    except (SafetensorError, OSError, RuntimeError) as error:  # the last where no memory can be mapped
        raise _damaged(path, "safetensors", error) from error
    return WeightFile(path, keys, metadata, lambda wanted: _read_safetensors(path, wanted))


def _read_safetensors(path: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    wanted = tuple(wanted)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in wanted:
                _refuse_giant(path, key, file.get_slice(key).get_shape())
            # Cloned, so that nothing points into the file once it is closed or overwritten by a trainer.
            return {key: file.get_tensor(key).clone() for key in wanted}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors", error) from error


def _damaged(path: Path, kind: str, error: Exception) -> BlendError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BlendError(
        f"{path.name} is truncated or not a {kind} file ({reason}; {path.stat().st_size} bytes). "
        "Download or save it again."
    )


def open_pickle(path: Path) -> WeightFile:
    """The tensors of what torch.save wrote. Raises BlendError for other objects, compression and damage."""
    _refuse_compressed(path)
    try:
        # Mapped, so that a checkpoint that holds its base too takes no more memory than its LoRA.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except Exception as error:
        raise _pickle_error(path, error) from error
    config = content.get(_LORA_CONFIG) if isinstance(content, Mapping) else None
    tensors = _tensors_only(path, _unwrapped(content))
    return WeightFile(
        path,
        tuple(tensors),
        {},
        lambda wanted: {key: tensors[key].clone() for key in wanted},
        config if isinstance(config, Mapping) else {},
    )


def _refuse_compressed(path: Path) -> None:
    """torch stores its tensors as they are: what unpacks to more than the file's own size is a zip bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the format before zip, or nothing that torch will open
    if unpacked > path.stat().st_size:
        raise BlendError(
            f"{path.name} unpacks from {path.stat().st_size} to {unpacked} bytes, expected tensors that are not "
            "compressed. It will not be opened: convert it to safetensors where you trust it."
        )


def _pickle_error(path: Path, error: Exception) -> BlendError:
    # Both a forbidden object and a cut stream raise UnpicklingError; only the first names what it refused.
    forbidden = isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error)
    cut = any(sign in str(error) for sign in ("truncated", "invalid load key", "Ran out of input"))
    if (forbidden and not cut) or "TorchScript" in str(error):
        return BlendError(
            f"{path.name}: this file holds Python objects besides tensors and will not be opened; "
            "convert it to safetensors where you trust it."
        )
    return _damaged(path, "torch", error)


def _unwrapped(content: Any) -> Any:
    """The dict of tensors itself, or the one inside of a wrapper: one level, no deeper."""
    if isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return content[name]
    return content


def _tensors_only(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise BlendError(
            f"{path.name} holds a {type(content).__name__}, expected a dict of tensors. Save the LoRA's state dict."
        )
    tensors = {key: _as_tensor(value) for key, value in content.items()}
    for key, value in tensors.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise BlendError(
                f"{path.name}: {key!r} is a {type(value).__name__}, expected a tensor. "
                "Save the LoRA's state dict alone, without the trainer's state."
            )
        _refuse_virtual(path, key, value)
    return tensors


def _as_tensor(value: Any) -> Any:
    """A number as a tensor (an alpha, a trainer's count of steps); others as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except OverflowError:
        return torch.as_tensor(math.inf)


def _refuse_virtual(path: Path, key: str, tensor: Tensor) -> None:
    """Tensors without memory of their own: sparse or on no device, or one number under a shape of any size."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BlendError(
            f"{path.name}: {key!r} is a tensor of shape {tuple(tensor.shape)} without all of its numbers in the file "
            "(sparse, quantised or expanded), expected a plain one. Save it again with .contiguous()."
        )
    _refuse_giant(path, key, tensor.shape)
