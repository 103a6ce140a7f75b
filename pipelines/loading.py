"""Opening base models and reward LoRAs for the diffusers host."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError

from ..blend_core import BlendError, LoadReport, read_adapter, resolve
from ..blend_core.adapters import Adapter
from ..blend_core.errors import first_line
from .host import network_of, target_index

SINGLE_FILES = (".safetensors", ".ckpt")


def hide_loading_bars() -> None:
    """Switch off the bars that diffusers and transformers draw while they load, for a program that draws its own."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def load_base(path: str, config: str | None = None, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The pipeline of a diffusers folder, a hub id, or a single-file checkpoint, its progress bar off.

    config: for a single file, a local diffusers folder of its family. A local path never reaches for the network.
    Pipelines that take `eta` get a DDIMScheduler with their own configuration: other schedulers would ignore it.
    Raises BlendError for what cannot be opened.
    """
    place = Path(path).expanduser()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype")  # renamed since the oldest diffusers we support
            pipe = _load(path, place, config, dtype)
    except BlendError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SingleFileComponentError) as error:
        raise BlendError(
            f"{path} cannot be opened as a base model: {first_line(error)}. Expected a diffusers folder (with "
            "model_index.json), a hub id, or a .safetensors checkpoint, the latter with --config naming a diffusers "
            "folder of its family. Check the path, or the connection for a hub id."
        ) from error
    network_of(pipe)  # refuses what has no denoising network
    if takes_eta(pipe) and not isinstance(pipe.scheduler, DDIMScheduler):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def takes_eta(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline's call has DDIM's eta; those of flow models have not."""
    return "eta" in inspect.signature(pipe.__call__).parameters


def load_factors(pipe: DiffusionPipeline, paths: Sequence[str | Path]) -> tuple[list[dict], list[LoadReport]]:
    """What the files change of the pipeline's network, by target, and how each matched."""
    return match(pipe, [read_adapter(path) for path in paths])


def match(pipe: DiffusionPipeline, adapters: Sequence[Adapter]) -> tuple[list[dict], list[LoadReport]]:
    """What the adapters change of the pipeline's network, by target, and how each matched."""
    index = target_index(network_of(pipe))
    pairs = [resolve(adapter, index) for adapter in adapters]
    return [changes for changes, _ in pairs], [report for _, report in pairs]


def _load(path: str, place: Path, config: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    if place.suffix in SINGLE_FILES:
        return _load_single_file(place, config, dtype)
    if config is not None:
        raise BlendError(f"a config came with {path}, which is no single file. Leave --config out for a folder.")
    local = place.exists()
    return DiffusionPipeline.from_pretrained(str(place) if local else path, torch_dtype=dtype, local_files_only=local)


def _load_single_file(path: Path, config: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    if not path.is_file():
        raise BlendError(f"{path} is no file. Give the path of a checkpoint, or of a diffusers folder.")
    if config is None:
        raise BlendError(
            f"{path.name} is a single file, which holds weights but no configuration or tokenizer. Give --config "
            "(train: base.config) a local diffusers folder of the same family; its weights are not needed."
        )
    folder = Path(config).expanduser()
    if not (folder / "model_index.json").is_file():
        raise BlendError(f"the config folder {folder} has no model_index.json. Give a diffusers folder.")
    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    family = getattr(diffusers, str(name), None)
    if not hasattr(family, "from_single_file"):
        raise BlendError(
            f"the config folder {folder} is of a {name}, which diffusers opens from no single file. Give a folder of "
            f"the family of {path.name}, or that model as a diffusers folder."
        )
    options = {"safety_checker": None} if family is StableDiffusionPipeline else {}
    return family.from_single_file(str(path), config=str(folder), torch_dtype=dtype, local_files_only=True, **options)
