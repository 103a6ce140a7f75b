"""Finding and opening weight files: safetensors with their header, pickle containers through weights_only alone.

A LoRA may lie in several files: shards (`...-00001-of-00002`) are opened together, as one.
"""

import difflib
import fnmatch
import hashlib
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BlendError

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WRAPPERS = ("policy_state_dict", "state_dict", "lora", "module")  # the first is UniRL's
_LORA_CONFIG = "lora_config"  # beside UniRL's policy_state_dict: rank and alpha
MOST_KEYS, LONGEST_KEY = 65_536, 512  # a LoRA of the largest model has some 20,000; names are below 150
LARGEST_TENSOR = 2**28  # numbers; a factor of rank 1024 on a width of 25,600 is a tenth of it
_TRAINING_STATE = (
    "*optimizer*", "random_states*", "rng_state*", "*scheduler*", "scaler*", "sampler*", "training_args*",
)  # fmt: skip
_REFERENCE_COPIES = ("old", "ref")  # folders of the policy that a trainer compares with, beside the one to use
_MOST_SHARDS = 999
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_NAMES_THAT_SAY_NOTHING = {
    "adapter_model", "pytorch_lora_weights", "pytorch_custom_diffusion_weights", "diffusion_pytorch_model",
    "pytorch_model", "model", "adapter", "lora", "default", "checkpoint", "unet", "transformer", "transformer_2",
}  # fmt: skip
_SECOND_NETWORK = "transformer_2"  # diffusers' name of Wan 2.2's network for low noise


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


def open_weights(path: str | os.PathLike) -> WeightFile:
    """The weight file at `path`, with the other shards of it; a folder may stand for the only one below it.

    Raises BlendError if unreadable.
    """
    with _readable(path):
        first, *others = _shards(_one_file(Path(path).expanduser()))
        opened = _joined([_opened(first), *map(_opened, others)]) if others else _opened(first)
    _refuse_endless(opened.path, opened.keys)
    return opened


def _opened(path: Path) -> WeightFile:
    if path.stat().st_size == 0:
        raise BlendError(f"{path} is empty (0 bytes), expected a LoRA file. Download or save it again.")
    _refuse_text(path)
    opened = _open_safetensors(path) if path.suffix.lower() in SAFETENSORS else _open_pickle(path)
    if not opened.keys:
        raise BlendError(f"{path} holds no tensors, expected LoRA factors. Save or download it again.")
    return opened


@contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """Raise BlendError for what the system says of a path: no permission, no such name, a broken disk."""
    try:
        yield
    except BlendError:
        raise
    except (OSError, ValueError) as error:  # the latter for names with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise BlendError(
            f"{str(path)[:300]} cannot be read ({reason}). Check its permissions and its name, or copy it elsewhere."
        ) from error


def shards_of(path: str | os.PathLike) -> list[Path]:
    """The files of a LoRA that was saved in several, in order, whether they are there or not; else `path` alone."""
    path = Path(path)
    shard = _SHARD.fullmatch(path.stem)
    if shard is None:
        return [path]
    numbers = range(1, min(int(shard["count"]), _MOST_SHARDS) + 1)
    return [path.with_name(f"{shard['stem']}-{number:05}-of-{shard['count']}{path.suffix}") for number in numbers]


def _shards(path: Path) -> list[Path]:
    """All files of the LoRA. Raises BlendError where some are missing."""
    files = shards_of(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing or path not in files:
        raise BlendError(
            f"{path.name} is one of {len(files)} files that are one LoRA together; {len(missing)} of them are missing "
            f"from {path.parent} (first: {(missing or [path.name])[0]}). Put all of them into one folder."
        )
    return files


def _joined(shards: Sequence[WeightFile]) -> WeightFile:
    """The shards as one file under the name of the first. Raises BlendError for a key in two of them."""
    place = {}
    for shard in shards:
        for key in shard.keys:
            if key in place:
                raise BlendError(
                    f"{shard.path.name} and {place[key].path.name} both hold {key!r}, expected it in one of them. The "
                    "files are not of one LoRA, or one is there twice: download them again."
                )
            place[key] = shard

    def read(wanted: Iterable[str]) -> dict[str, Tensor]:
        wanted = list(wanted)
        by_shard = {shard.path: shard.read([key for key in wanted if place[key] is shard]) for shard in shards}
        return {key: by_shard[place[key].path][key] for key in wanted}

    return WeightFile(shards[0].path, tuple(place), shards[0].metadata, read, shards[0].lora_config)


def adapter_files(folder: str | os.PathLike) -> list[Path]:
    """Weight files under `folder` worth showing to a user, sorted; training state and reference copies left out."""
    folder = Path(folder).expanduser()
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return without_references([file for file in found if is_adapter_file(file)])


def sha256(path: str | os.PathLike) -> str:
    """The file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def is_adapter_file(path: str | os.PathLike) -> bool:
    """Whether the name alone may be a LoRA: a weight file, and not a trainer's state (optimizer.bin and the like).

    Of shards, the first alone, which stands for all.
    """
    shard = _SHARD.fullmatch(Path(path).stem)
    return _is_weight_file(path) and (shard is None or int(shard["number"]) == 1)


def _is_weight_file(path: str | os.PathLike) -> bool:
    path = Path(path)
    name = path.name.lower()
    known = path.suffix.lower() in SAFETENSORS + PICKLES
    return known and not name.startswith(".") and not any(fnmatch.fnmatch(name, state) for state in _TRAINING_STATE)


def label_of(path: Path) -> str:
    """The file's stem, or the nearest folder with a telling name for the likes of adapter_model.safetensors.

    The second of two networks keeps the name of its folder too: "checkpoint-60 transformer_2".
    """
    shard = _SHARD.fullmatch(path.stem)
    names = [shard["stem"] if shard else path.stem, *(parent.name for parent in path.absolute().parents)]
    telling = next((name for name in names if not says_nothing(name)), names[0])
    return f"{telling} {_SECOND_NETWORK}" if _SECOND_NETWORK in names[: names.index(telling)] else telling


def says_nothing(name: str) -> bool:
    hub_cache = name == "snapshots" or re.fullmatch(r"[0-9a-f]{40}", name)
    return not name or bool(hub_cache) or name.lower() in _NAMES_THAT_SAY_NOTHING


def weight_files_in(folder: Path) -> list[Path]:
    """The LoRAs in a folder, each by its only file or its first shard."""
    firsts: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if _is_weight_file(file) and file.is_file():
            shard = _SHARD.fullmatch(file.stem)
            firsts.setdefault(f"{shard['stem']}-of-{shard['count']}{file.suffix}" if shard else file.name, file)
    return sorted(firsts.values())


def without_references(files: Sequence[Path]) -> list[Path]:
    """Sorted, without the copies of a policy that trainers keep to compare with: lora/old/ below lora/ or beside it."""
    shown = {file for file in files if file.parent.name not in _REFERENCE_COPIES}
    used = {(file.parent, file.name) for file in shown} | {(file.parent.parent, file.name) for file in shown}
    return sorted(file for file in files if file in shown or (file.parent.parent, file.name) not in used)


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
    """The only LoRA in a folder, or the one below it that lies beside reference copies of itself."""
    files = weight_files_in(folder)
    below = [] if files else adapter_files(folder)
    if len(files) == 1:
        return files[0]
    if len(below) == 1 and len(below) < len([*folder.rglob(below[0].name)]):
        return below[0]
    names = ", ".join(str(file.relative_to(folder)) for file in (files or below)[:8])
    if len(below) == 2 and any(file.parent.name == _SECOND_NETWORK for file in below):
        raise BlendError(
            f"the folder {folder} holds the LoRAs of two networks ({names}): Wan 2.2 has one for high noise, the "
            "first, and one for low noise. Load each by its own name, and blend it on its own network."
        )
    if files:
        raise BlendError(f"the folder {folder} holds {len(files)} weight files ({names}). Choose one of them by name.")
    hint = f"Files below it: {names}; choose one." if below else "Choose a folder that holds one."
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


def _open_pickle(path: Path) -> WeightFile:
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


def _damaged(path: Path, kind: str, error: Exception) -> BlendError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BlendError(
        f"{path.name} is truncated or not a {kind} file ({reason}; {path.stat().st_size} bytes). "
        "Download or save it again."
    )


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
