"""The accelerator of a run: its devices, precision, processes and trackers. What the loop cannot do is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, LoggerType

from ..blend_core.errors import BlendError
from .loop.checkpoint import plain
from .settings.config import Config


def open_accelerator(config: Config) -> Accelerator:
    """The accelerator that the settings and accelerate's own configuration ask for, with its trackers started.

    Raises BlendError for trackers, a precision or a way of sharing a network out that cannot be had.
    """
    trackers = list(config.output.trackers)
    _check_trackers(trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=config.optimisation.precision,
            log_with=trackers or None,
            project_dir=str(Path(config.output.folder).expanduser()),
            cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        )
        accelerator.init_trackers("diffusion-blend", config=_tracked(config))
    except (ValueError, ImportError) as error:
        raise BlendError(
            f"output.trackers or optimisation.precision cannot be used here: {str(error).splitlines()[0]} Install the "
            "tracker, or leave it out."
        ) from error
    check_distribution(accelerator)
    return accelerator


def check_distribution(accelerator: Accelerator) -> None:
    """Raise BlendError for ways of sharing a network out that the loop has not been written for."""
    kind = accelerator.distributed_type
    sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if sharded and not getattr(accelerator, "is_fsdp2", False):
        raise BlendError(
            f"accelerate was configured for {kind.value}, expected plain data parallelism or FSDP with fsdp_version 2. "
            "Choose one of these in accelerate's configuration."
        )


def _check_trackers(names: Sequence[str]) -> None:
    """Raise BlendError for a tracker without its package, which accelerate would leave out without a word."""
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name in LoggerType.list() and name not in installed | {"all"}:
            raise BlendError(
                f"output.trackers names {name}, whose package is not installed (installed here: "
                f"{', '.join(sorted(installed)) or 'none'}). Install it, or leave {name} out: log.jsonl remains."
            )


def _tracked(config: Config) -> dict[str, Any]:
    """The settings as trackers take them: numbers and texts."""
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in plain(config).items()}
