"""Finding and opening weight files: safetensors with their header, pickle containers through weights_only alone."""

import difflib
import fnmatch
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BlendError

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WRAPPERS = ("state_dict", "lora", "module")
MOST_KEYS, LONGEST_KEY = 200_000, 512  # a LoRA of the largest model has some 20,000; names are below 150
LARGEST_TENSOR = 2**28  # numbers; a factor of rank 1024 on a width of 25,600 is a tenth of it
_TRAINING_STATE = (
    "optimizer*", "random_states*", "rng_state*", "scheduler*", "scaler*", "sampler*", "training_args*",
)  # fmt: skip
_NAMES_THAT_SAY_NOTHING = {
    "adapter_model", "pytorch_lora_weights", "pytorch_custom_diffusion_weights", "diffusion_pytorch_model",
    "pytorch_model", "model", "adapter", "lora", "default", "unet", "transformer",
}  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """An opened file: its keys at once, its tensors when asked for (a checkpoint of 20 GB is refused by its keys)."""

    path: Path
    keys: tuple[str, ...]
    metadata: Mapping[str, str]
    read: Callable[[Iterable[str]], dict[str, Tensor]]


def open_weights(path: str | os.PathLike) -> WeightFile:
    """The weight file at `path`, which may be a folder that holds exactly one. Raises BlendError if unreadable."""
    path = _one_file(Path(path).expanduser())
    if path.stat().st_size == 0:
        raise BlendError(f"{path} is empty (0 bytes), expected a LoRA file. Download or save it again.")
    _refuse_text(path)
    opened = _open_safetensors(path) if path.suffix.lower() in SAFETENSORS else _open_pickle(path)
    if not opened.keys:
        raise BlendError(f"{path} holds no tensors, expected LoRA factors. Save or download it again.")
    _refuse_endless(path, opened.keys)
    return opened


def adapter_files(folder: str | os.PathLike) -> list[Path]:
    """Weight files under `folder` worth showing to a user, sorted; training state and reference copies left out."""
    folder = Path(folder).expanduser()
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sorted(file for file in found if is_adapter_file(file) and not _is_old_copy(file))


def is_adapter_file(path: str | os.PathLike) -> bool:
    """Whether the name alone may be a LoRA: a weight file, and not a trainer's state (optimizer.bin and the like)."""
    path = Path(path)
    name = path.name.lower()
    known = path.suffix.lower() in SAFETENSORS + PICKLES
    return known and not name.startswith(".") and not any(fnmatch.fnmatch(name, state) for state in _TRAINING_STATE)


def label_of(path: Path) -> str:
    """The file's stem, or the nearest folder with a telling name for the likes of adapter_model.safetensors."""
    names = [path.stem, *(parent.name for parent in path.absolute().parents)]
    return next((name for name in names if not _says_nothing(name)), path.stem)


def _says_nothing(name: str) -> bool:
    hub_cache = name == "snapshots" or re.fullmatch(r"[0-9a-f]{40}", name)
    return not name or bool(hub_cache) or name.lower() in _NAMES_THAT_SAY_NOTHING


def weight_files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and is_adapter_file(file))


def _is_old_copy(path: Path) -> bool:
    # DiffusionNFT saves lora/ (to use) beside lora/old/ (the reference policy of its last step).
    return path.parent.name == "old" and (path.parent.parent / path.name).exists()


def _one_file(path: Path) -> Path:
    if path.is_dir():
        return _only_file_in(path)
    if not path.exists():
        raise BlendError(f"there is no file {path}. {_near_names(path)}")
    if path.suffix.lower() not in SAFETENSORS + PICKLES:
        raise BlendError(
            f"{path.name} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(SAFETENSORS + PICKLES)}. "
            "Convert it to safetensors where you trust it."
        )
    return path


def _only_file_in(folder: Path) -> Path:
    files = weight_files_in(folder)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:8])
        raise BlendError(f"the folder {folder} holds {len(files)} weight files ({names}). Choose one of them by name.")
    below = [str(file.relative_to(folder)) for file in adapter_files(folder)[:8]]
    hint = f"Files below it: {', '.join(below)}; choose one." if below else "Choose a folder that holds one."
    raise BlendError(f"the folder {folder} holds no weight file. {hint}")


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f"Its folder {path.parent} does not exist either; check the path."
    names = [file.name for file in path.parent.iterdir() if file.is_dir() or is_adapter_file(file)]
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.4)
    if near:
        return f"Near names in {path.parent}: {', '.join(near)}. Choose one of these."
    return f"Weight files in {path.parent}: {', '.join(sorted(names)[:8]) or 'none'}. Check the name."


def _refuse_text(path: Path) -> None:
    """What a failed download leaves behind, under the name of a weight file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise BlendError(f"{path.name} is a Git LFS pointer, expected the weights. Run `git lfs pull`, or download it.")
    # Whole tags only: the header length a safetensors file begins with may well spell a lone "<".
    if start.lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise BlendError(f"{path.name} is a web page, expected the weights. Download it again through its direct link.")


def _refuse_endless(path: Path, keys: Iterable[str]) -> None:
    """Names that no trainer writes, and that would take minutes to read."""
    keys = tuple(keys)
    longest = max(keys, key=len)
    if len(keys) > MOST_KEYS or len(longest) > LONGEST_KEY:
        raise BlendError(
            f"{path.name} holds {len(keys)} keys of up to {len(longest)} characters (the longest begins with "
            f"{longest[:60]!r}), expected at most {MOST_KEYS} of {LONGEST_KEY}. It is no LoRA: choose another file."
        )


def _refuse_giant(path: Path, key: str, shape: Iterable[int]) -> None:
    """Before it is read: a file may be sparse on the disk and terabytes in memory."""
    shape = tuple(shape)
    if math.prod(shape) > LARGEST_TENSOR:
        raise BlendError(
            f"{path.name}: {key!r} has the shape {shape}, {math.prod(shape):.3g} numbers, expected at most "
            f"{LARGEST_TENSOR:.3g} of a factor. It is no LoRA: choose another file."
        )


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys, metadata = tuple(file.keys()), dict(file.metadata() or {})
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


def _open_pickle(path: Path) -> WeightFile:
    _refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _pickle_error(path, error) from error
    tensors = _tensors_only(path, _unwrapped(content))
    return WeightFile(path, tuple(tensors), {}, lambda wanted: {key: tensors[key] for key in wanted})


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


def _damaged(path: Path, kind: str, error: Exception) -> BlendError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BlendError(
        f"{path.name} is truncated or not a {kind} file ({reason}; {path.stat().st_size} bytes). "
        "Download or save it again."
    )


def _unwrapped(content: Any) -> Any:
    """The dict of tensors itself, or the one inside `state_dict`, `lora` or `module`: one level, no deeper."""
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
    tensors = {
        key: torch.as_tensor(value) if str(key).endswith(".alpha") and isinstance(value, int | float) else value
        for key, value in content.items()
    }
    for key, value in tensors.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise BlendError(
                f"{path.name}: {key!r} is a {type(value).__name__}, expected a tensor. "
                "Save the LoRA's state dict alone, without the trainer's state."
            )
        _refuse_virtual(path, key, value)
    return tensors


def _refuse_virtual(path: Path, key: str, tensor: Tensor) -> None:
    """Tensors without memory of their own: sparse or on no device, or one number under a shape of any size."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BlendError(
            f"{path.name}: {key!r} is a tensor of shape {tuple(tensor.shape)} without all of its numbers in the file "
            "(sparse, quantised or expanded), expected a plain one. Save it again with .contiguous()."
        )
    _refuse_giant(path, key, tensor.shape)
