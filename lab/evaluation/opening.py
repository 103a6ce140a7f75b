"""Opening what a protocol names: base model, LoRAs, rewards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ...blend_core import BlendError, read_adapter
from ...blend_core.adapters.files import sha256
from ...blend_core.rewards import Library, Reward, load_reward
from ...pipelines import load_base, match
from ...trainers.model.base import Base
from ...trainers.places import reward_label
from ...trainers.settings.fields import stated_settings
from ..generation.record import fingerprint, place
from ..generation.run import dtype_of, read_rewards
from ..options import read_prompts
from ..scores.chosen_rewards import library_of
from .host import Host, LoRAs
from .methods import oracle_files
from .protocol import Protocol

TOY = "toy:"


def open_host(protocol: Protocol, device: str) -> Host:
    """The models of a protocol on a device. Raises BlendError for what cannot be opened, or not be sampled so."""
    files = lora_files(protocol)
    adapters = {name: read_adapter(file) for name, file in files.items()}
    oracles = {preference: read_adapter(place(path)) for preference, path in oracle_files(protocol).items()}
    rewards = _rewards(protocol, device)
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    models = protocol.models
    pipe = load_base(place(models.base), models.config or None, dtype_of(models.dtype)).to(device)
    factors, _ = match(pipe, list(adapters.values()))
    tuned, _ = match(pipe, list(oracles.values()))
    each = adapters.values()
    loras = LoRAs(
        tuple(files),
        factors,
        tuple(adapter.kl_weight for adapter in each),
        tuple(adapter.eta for adapter in each),
        dict(zip(oracles, tuned, strict=True)),
    )
    return Host(Base(pipe, protocol.sampling.size), loras, rewards, protocol.sampling)


def lora_files(protocol: Protocol) -> dict[str, Path]:
    """name -> file. Raises BlendError where one is missing."""
    named = read_rewards(protocol.models.loras, protocol.models.base)
    files = {name: Path(place(path)).expanduser() for name, path in named.items()}
    for name, file in files.items():
        if not file.is_file():
            raise BlendError(f"{file} ({name}) is no file. Name an existing LoRA file in models.loras.")
    return files


def prompts_of(protocol: Protocol) -> list[str]:
    """The protocol's own prompts, then those of its file. Raises BlendError where one comes twice."""
    file = protocol.prompts.file
    prompts = [*protocol.prompts.texts, *(read_prompts(Path(file).expanduser()) if file else [])]
    twice = next((prompt for prompt in prompts if prompts.count(prompt) > 1), None)
    if twice is not None:
        raise BlendError(f"the prompt {twice!r} came twice. Leave one out: each is sampled with every seed.")
    return prompts


def record_of(protocol: Protocol, host: Host, prompts: list[str], out: Path) -> dict:
    """What decides an evaluation's figures, for evaluation.json in `out`."""
    digests = {name: sha256(file) for name, file in lora_files(protocol).items()}
    digests |= {str(key): sha256(Path(place(path))) for key, path in oracle_files(protocol).items()}
    return {
        "protocol": asdict(stated_settings(protocol, out)),
        "prompts": prompts,
        "sha256": digests,
        "base_fingerprint": fingerprint(host.base.pipe),
        "device": host.base.device.type,
        "torch": torch.__version__,
    }


def _rewards(protocol: Protocol, device: str) -> dict[str, Reward]:
    choice = protocol.rewards
    library = library_of([Path(folder).expanduser() for folder in choice.folders], choice.download)
    labels = [reward_label(name).removeprefix(TOY) for name in choice.names]
    opened = [_reward(name, library, device, choice.scale) for name in choice.names]
    rewards = dict(zip(labels, opened, strict=True))
    if len(rewards) < len(choice.names):
        raise BlendError(f"rewards.names are {', '.join(choice.names)}; each may come once. Leave the spare one out.")
    blind = [name for name, reward in rewards.items() if not reward.card.differentiable]
    if "rgg" in protocol.methods and blind:
        raise BlendError(f"the reward {blind[0]} has no gradient, which rgg follows. Leave rgg out of methods.")
    return rewards


def _reward(name: str, library: Library, device: str, scale: str) -> Reward:
    if not name.startswith(TOY):
        return load_reward(name, library, device, scale=scale)
    from ..toy.rewards import toy_rewards

    known = toy_rewards()
    if name.removeprefix(TOY) not in known:
        listed = ", ".join(TOY + each for each in known)
        raise BlendError(f"the reward {name!r} is unknown, the toy studio's are {listed}. Correct rewards.names.")
    return known[name.removeprefix(TOY)].to(device)
