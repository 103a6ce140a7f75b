"""`diffusion-blend fetch`: reward LoRAs of the catalogue, downloaded to where ComfyUI looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...blend_core.adapters.catalogue import Entry
    from ..downloads import RemoteFile


def command(
    name: Annotated[str, typer.Argument(help="A name of the catalogue; none: list the names.")] = "",
    to: Annotated[Path | None, typer.Option(help="The folder to put it into. Default: ComfyUI's models/loras.")] = None,
    comfyui: Annotated[Path | None, typer.Option(help="ComfyUI's folder.", envvar="COMFYUI_PATH")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the download.")] = False,
) -> None:
    """Download a reward LoRA, with its configuration where it has one; a cut download goes on."""
    if not name:
        _list()
        return
    from ..downloads import download, missing, place_of, remote_files

    entry = _entry(name)
    folder = _folder(to, comfyui)
    files = remote_files(entry)
    wanted = missing(entry, files, folder)
    if wanted and not yes:
        typer.confirm(_question(entry, wanted, folder), abort=True)
    for file in wanted:
        download(entry, file, folder)
    for file in files:
        print(place_of(entry, file, folder))
    print("In ComfyUI press R, then choose it in Load Reward LoRA." if wanted else "It was there already.")


def _list() -> None:
    from ...blend_core.adapters.catalogue import catalogue

    entries = catalogue().values()
    names, bases = (2 + max(len(getattr(entry, key)) for entry in entries) for key in ("name", "base"))
    for entry in entries:
        print(f"{entry.name:{names}}{entry.base:{bases}}{entry.reward}")
    print("All that is known of them: docs/reward_loras.md")


def _entry(name: str) -> Entry:
    import difflib

    from ...blend_core import BlendError
    from ...blend_core.adapters.catalogue import catalogue

    entries = catalogue()
    if name not in entries:
        near = difflib.get_close_matches(name.lower(), entries, n=3, cutoff=0.4)
        hint = f"Near names: {', '.join(near)}." if near else "`diffusion-blend fetch` lists the names."
        raise BlendError(f"{name} is not in the catalogue. {hint}")
    return entries[name]


def _folder(to: Path | None, comfyui: Path | None) -> Path:
    """Where the files go. Raises BlendError where neither folder came, or ComfyUI is not in the one that came."""
    from ...blend_core import BlendError

    if to is not None:
        return to.expanduser()
    if comfyui is None:
        raise BlendError(
            "where ComfyUI lies is not known. Give --comfyui FOLDER (or set COMFYUI_PATH), or any folder with --to."
        )
    if not (comfyui.expanduser() / "folder_paths.py").is_file():
        raise BlendError(
            f"{comfyui} is not ComfyUI's folder (it has no folder_paths.py). Give the one that holds main.py and "
            "models, or any folder with --to."
        )
    return comfyui.expanduser() / "models" / "loras"


def _question(entry: Entry, files: list[RemoteFile], folder: Path) -> str:
    sizes = [file.size for file in files]
    size = "size unknown" if None in sizes else f"{sum(sizes) / 1e6:.1f} MB"
    licence = entry.licence or "not stated in the catalogue"
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return f"{entry.name}, {entry.page}\n{count}, {size}, to {folder}; licence: {licence}\nDownload?"
