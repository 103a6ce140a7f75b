"""Where LoRA files lie: the files of a folder, the shards of one LoRA, and the name to show for a file."""

import difflib
import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import BlendError

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TRAINING_STATE = (
    "*optimizer*", "random_states*", "rng_state*", "*scheduler*", "scaler*", "sampler*", "training_args*",
)  # fmt: skip
_REFERENCE_COPIES = ("old", "ref")  # folders of the policy that a trainer compares with, next to the one to use
_MOST_SHARDS = 999
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_NAMES_THAT_SAY_NOTHING = {
    "adapter_model", "pytorch_lora_weights", "pytorch_custom_diffusion_weights", "diffusion_pytorch_model",
    "pytorch_model", "model", "adapter", "lora", "default", "checkpoint", "unet", "transformer", "transformer_2",
}  # fmt: skip
_SECOND_NETWORK = "transformer_2"  # diffusers' name of Wan 2.2's network for low noise


def shards_of(path: str | os.PathLike) -> list[Path]:
    """The files of a LoRA that was saved in several, in order, whether they are there or not; else `path` alone."""
    path = Path(path)
    shard = _SHARD.fullmatch(path.stem)
    if shard is None:
        return [path]
    numbers = range(1, min(int(shard["count"]), _MOST_SHARDS) + 1)
    return [path.with_name(f"{shard['stem']}-{number:05}-of-{shard['count']}{path.suffix}") for number in numbers]


def all_shards(path: Path) -> list[Path]:
    """All files of the LoRA. Raises BlendError where some are missing."""
    files = shards_of(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing or path not in files:
        raise BlendError(
            f"{path.name} is one of {len(files)} files that are one LoRA together; {len(missing)} of them are missing "
            f"from {path.parent} (first: {(missing or [path.name])[0]}). Put all of them into one folder."
        )
    return files


def adapter_files(folder: str | os.PathLike) -> list[Path]:
    """Weight files under `folder` worth showing to a user, sorted; training state and reference copies left out."""
    folder = Path(folder).expanduser()
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return without_references([file for file in files if is_adapter_file(file)])


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
    """Sorted, without the copies of a policy that trainers compare with: lora/old/ below lora/ or next to it."""
    shown = {file for file in files if file.parent.name not in _REFERENCE_COPIES}
    used = {(file.parent, file.name) for file in shown} | {(file.parent.parent, file.name) for file in shown}
    return sorted(file for file in files if file in shown or (file.parent.parent, file.name) not in used)


def one_file(path: Path) -> Path:
    """`path`, or the only LoRA of a folder. Raises BlendError where there is none, or a choice."""
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
    """The only LoRA in a folder, or the one below it that lies next to reference copies of itself."""
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
