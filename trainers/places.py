"""Paths as files that are passed on state them: relative to the file's own folder, or the last part alone.

A file that is shared must not say where things lie on the machine that wrote it. Imports the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

HIDDEN = ".../"  # in the place of folders that are not stated
Stated = Callable[[str, Path], str]  # (a setting, the folder of the file that is to state it) -> what the file says

_START = r"(?:~?[/\\]|[A-Za-z]:[/\\])(?=\S)"
_PATH = re.compile(rf"""(?:^|(?<=[\s"'=,*\[({{])){_START}(?:(?!\s{_START})[^"',\])}}])*""")


def stated(path: str, folder: Path) -> str:
    """A path as a file in `folder` states it; what is no place on this machine, such as a hub id, as it is.

    Relative to `folder`; where that way would lead through the disk's root or past the home folder, and so name the
    machine's folders, `.../` and the last part. `reopened` turns the former back.
    """
    if path.startswith(HIDDEN) or not _is_place(path):
        return path
    place, start = (os.path.abspath(os.path.expanduser(one)) for one in (path, folder))
    try:
        shared = Path(os.path.commonpath([place, start]))
    except ValueError:  # two disks of Windows
        return HIDDEN + os.path.basename(place)
    if shared == shared.parent or shared in Path(os.path.expanduser("~")).absolute().parents:
        return HIDDEN + os.path.basename(place)
    return Path(os.path.relpath(place, start)).as_posix()


def stated_reward(name: str, folder: Path) -> str:
    """The same for the place of a reward, file.py or file.py:function; the name of any other reward as it is."""
    place, colon, function = _parts(name)
    return stated(place, folder) + colon + function if place.endswith(".py") else name


def last_after(separator: str, change: Stated) -> Stated:
    """`change` for the part behind the last separator of a text such as NAME=PATH; without one, for all of it."""

    def changed(text: str, folder: Path) -> str:
        head, mark, tail = text.rpartition(separator)
        return head + mark + change(tail, folder)

    return changed


def reopened(path: str, folder: Path) -> str:
    """A path that a file in `folder` states, as it is opened: absolute where something lies there, else unchanged."""
    place = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
    return place if path and os.path.exists(place) else path


def reward_label(name: str) -> str:
    """What tables and files call a reward: its name; of one in a Python file, without the folder."""
    place, colon, function = _parts(name)
    return Path(place).name + colon + function if place.endswith(".py") else name


def without_folders(text: str) -> str:
    """A text with every absolute path in it cut down to its last part."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def _is_place(path: str) -> bool:
    """Whether a text is a path. A bare word may be a folder's name by chance: it is none, but for a file's."""
    place = Path(path)
    if path.startswith("~") or place.is_absolute():
        return True
    return place.is_file() or (place.name != path and place.exists())


def _parts(name: str) -> tuple[str, str, str]:
    return name.rpartition(":") if ".py:" in name else (name, "", "")
