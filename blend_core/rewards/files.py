"""Finding the weights of learned rewards, and reading them without running anything they hold."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import BlendError, first_line


@dataclass(frozen=True)
class RewardFile:
    """A file that a reward needs. repository: its id on the hub, owner/name.  url: its address where not on the hub.

    also: names of other folders that hold the same file, such as one that a host brings along.
    by_hand: never downloaded, because its licence is for the user to accept.
    """

    repository: str
    filename: str
    url: str = ""
    also: tuple[str, ...] = ()
    by_hand: bool = False

    @property
    def page(self) -> str:
        """Where a person gets the file."""
        return self.url or f"https://huggingface.co/{self.repository}/blob/main/{self.filename}"

    @property
    def folder(self) -> str:
        """The repository's own name: rewards that share a file find it in a folder of this name."""
        return self.repository.rpartition("/")[2]


@dataclass(frozen=True)
class Library:
    """Where weights are looked for: `folders`, then the hub's cache on this machine; then downloaded if allowed.

    switch: what allows it, for messages.
    """

    folders: tuple[Path, ...] = (Path("reward_models"),)
    download: bool = False
    switch: str = "--download"

    def find(self, reward: str, files: Sequence[RewardFile]) -> list[Path]:
        """The files' paths. Raises BlendError that names each missing file, its address and the place for it.

        In every folder F: F/<reward>/<file>, F/<repository's name>/<file>, and the same with the ending .safetensors.
        """
        paths = {file: self._in_folders(reward, file) or self._in_cache(file) for file in files}
        missing = [file for file, path in paths.items() if path is None]
        if missing and (not self.download or any(file.by_hand for file in missing)):
            by_hand = any(file.by_hand for file in missing)
            allowed = "" if by_hand else f" Or allow downloads: {self.switch}."
            raise BlendError(f"{reward} needs {self._errand(reward, missing)}{allowed}")
        return [path or self._fetched(reward, file) for file, path in paths.items()]

    def own_rewards(self) -> dict[str, Path]:
        """The Python files in the folders by name, rewards of the user's own; the first folder wins."""
        return {file.name: file for folder in reversed(self.folders) for file in sorted(Path(folder).glob("*.py"))}

    def _errand(self, reward: str, files: Sequence[RewardFile]) -> str:
        home = self._home(reward)
        lines = [f"{file.filename}: get it from {file.page} and put it at {home / file.filename}." for file in files]
        return f"{'a file' if len(files) == 1 else f'{len(files)} files'} that cannot be found here. {' '.join(lines)}"

    def _home(self, reward: str) -> Path:
        return Path(self.folders[0]) / reward

    def _fetched(self, reward: str, file: RewardFile) -> Path:
        """The downloaded file; both ways show a progress bar and leave no half of a file behind where they fail."""
        try:
            if not file.url:
                from huggingface_hub import hf_hub_download

                return Path(hf_hub_download(file.repository, file.filename))
            path = self._home(reward) / file.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(file.url, str(path))
            return path
        except Exception as error:  # many kinds: offline, no such file, disk full; all mean the same to a user
            raise BlendError(
                f"a download failed ({type(error).__name__}: {first_line(error)}). {reward} needs "
                f"{self._errand(reward, [file])}"
            ) from error

    def _in_folders(self, reward: str, file: RewardFile) -> Path | None:
        names = dict.fromkeys([file.filename, str(Path(file.filename).with_suffix(".safetensors"))])
        below = (reward, file.folder, *file.also)
        places = (Path(root) / folder / name for root in self.folders for folder in below for name in names)
        return next((place for place in places if place.is_file()), None)

    def _in_cache(self, file: RewardFile) -> Path | None:
        if file.url:
            return None
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(file.repository, file.filename)
        return Path(cached) if isinstance(cached, str) else None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickled one that holds nothing but tensors.

    Code in a pickle is never run. Raises BlendError for what cannot be read so.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BlendError(
            f"{path} holds more than tensors, and was not opened, because that could run code. Get the original file "
            "of weights again, or a .safetensors version of it."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise BlendError(
            f"{path} cannot be read ({first_line(error)}): it is damaged, or its download was cut "
            "off. Delete it and get it again."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BlendError(f"{path} holds no table of tensors. Get the reward's own file of weights.")
    return state
