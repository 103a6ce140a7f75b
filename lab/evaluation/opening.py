"""The base model, LoRAs and rewards of an evaluation, opened on a device, and the record of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline

from ...blend_core import Blend, BlendError, Target, read_adapter
from ...blend_core.adapters import Adapter, Change
from ...blend_core.adapters.files import sha256
from ...blend_core.rewards import Library, Reward, load_reward
from ...pipelines import load_base, match
from ...pipelines.loading import hide_loading_bars
from ...trainers.model.base import Base
from ...trainers.places import reward_label
from ...trainers.settings.fields import stated_settings
from ..files import fingerprint
from ..generation.export import save_export
from ..options import dtype_of
from ..scores.chosen_rewards import library_of
from ..toy import MARK, place
from .evaluation import Evaluation
from .host import Host, LoRAs
from .protocol import Protocol
from .soup import equal_factors


def open_host(evaluation: Evaluation, device: str) -> Host:
    """The models of an evaluation on a device. Raises BlendError for what cannot be opened, or not be sampled so."""
    adapters = {name: read_adapter(file) for name, file in evaluation.loras.items()}
    singles = {
        (kind, preference): read_adapter(file)
        for kind, files in (("oracle", evaluation.oracles), ("distilled", evaluation.distilled))
        for preference, file in files.items()
    }
    protocol = evaluation.protocol
    rewards = _rewards(protocol, device)
    hide_loading_bars()
    models = protocol.models
    pipe = load_base(place(models.base), models.config or None, dtype_of(models.dtype)).to(device)
    factors, _ = match(pipe, list(adapters.values()))
    if "soup_factors" in protocol.methods:
        equal_factors(tuple(adapters), factors)
    if "export" in protocol.methods:
        singles |= _exports(pipe, adapters, factors, protocol)
    single_factors, _ = match(pipe, list(singles.values()))
    loras = LoRAs(
        tuple(adapters),
        factors,
        tuple(adapter.kl_weight for adapter in adapters.values()),
        tuple(adapter.eta for adapter in adapters.values()),
        dict(zip(singles, single_factors, strict=True)),
    )
    count = len(protocol.rewards.names)
    weighed, watched = dict(list(rewards.items())[:count]), dict(list(rewards.items())[count:])
    return Host(Base(pipe, protocol.sampling.size), loras, weighed, protocol.sampling, watched)


def record_of(evaluation: Evaluation, host: Host, out: Path) -> dict:
    """What decides an evaluation's figures, for evaluation.json in `out`."""
    files = evaluation.loras | {str(preference): file for preference, file in evaluation.oracles.items()}
    files |= {f"distilled {preference}": file for preference, file in evaluation.distilled.items()}
    return {
        "protocol": asdict(stated_settings(evaluation.protocol, out)),
        "prompts": list(evaluation.prompts),
        "sha256": {name: sha256(file) for name, file in files.items()},
        "base_fingerprint": fingerprint(host.base.pipe),
        "device": host.base.device.type,
        "torch": torch.__version__,
    }


def _exports(
    pipe: DiffusionPipeline,
    adapters: Mapping[str, Adapter],
    factors: Sequence[Mapping[Target, Change]],
    protocol: Protocol,
) -> dict[tuple[str, tuple[float, ...]], Adapter]:
    """("export", preference) -> the file that `diffusion-blend export` writes, read back."""
    loras, kl_weights = list(adapters.values()), tuple(adapter.kl_weight for adapter in adapters.values())
    exports = {}
    with TemporaryDirectory() as folder:
        for preference in protocol.preferences:
            file = Path(folder) / f"{len(exports)}.safetensors"
            blend = Blend(tuple(adapters), preference, 1.0, kl_weights)
            save_export(pipe, blend, loras, factors, protocol.models.export_rank, file)
            exports["export", preference] = read_adapter(file)
    return exports


def _rewards(protocol: Protocol, device: str) -> dict[str, Reward]:
    """Those that preferences weigh, in their order, then those that are only shown."""
    choice = protocol.rewards
    names = (*choice.names, *choice.watch)
    library = library_of([Path(folder).expanduser() for folder in choice.folders], choice.download)
    labels = [reward_label(name).removeprefix(MARK) for name in names]
    opened = [_reward(name, library, device, choice.scale) for name in names]
    rewards = dict(zip(labels, opened, strict=True))
    if len(rewards) < len(names):
        raise BlendError(
            f"rewards.names and rewards.watch are {', '.join(names)}; each may come once. Leave the spare one out."
        )
    blind = [name for name in labels[: len(choice.names)] if not rewards[name].card.differentiable]
    if "rgg" in protocol.methods and blind:
        raise BlendError(f"the reward {blind[0]} has no gradient, which rgg follows. Leave rgg out of methods.")
    return rewards


def _reward(name: str, library: Library, device: str, scale: str) -> Reward:
    if not name.startswith(MARK):
        return load_reward(name, library, device, scale=scale)
    from ..toy.rewards import toy_reward

    return toy_reward(name).to(device)
