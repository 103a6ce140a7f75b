"""The LoRA file of a run: safetensors that ComfyUI, diffusers and Load Reward LoRA read in the same way.

UNets get kohya's names, which are the only ones ComfyUI knows for them without a table; transformers get diffusers'.
Scale 1 everywhere: kohya's .alpha equals the rank, and where no alpha is written every reader takes it for the rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from ...blend_core.errors import BlendError
from ..model.families import Family
from ..places import without_folders
from ..sharding import whole

FORMAT = "1"


def lora_tensors(network: nn.Module, spelling: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The network's LoRA under the names of a spelling (kohya or diffusers), on the CPU. Every process must call it."""
    state = whole(get_peft_model_state_dict(network))
    state = {key: value.detach().to("cpu", dtype) for key, value in state.items()}
    return kohya_names(state) if spelling == "kohya" else diffusers_names(state)


def kohya_names(peft_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`lora_unet_X.lora_down.weight`, with `.alpha` equal to the rank."""
    spelled = {}
    for key, value in peft_state.items():
        module, _, role = key.removeprefix("base_model.model.").rpartition(".lora_")
        name = "lora_unet_" + module.replace(".", "_")
        down = role.startswith("A")
        spelled[f"{name}.lora_{'down' if down else 'up'}.weight"] = value.contiguous()
        if down:
            spelled[f"{name}.alpha"] = torch.tensor(float(value.shape[0]))
    return spelled


def diffusers_names(peft_state: Mapping[str, Tensor], component: str = "transformer") -> dict[str, Tensor]:
    """`transformer.X.lora_A.weight`. No `.alpha`: diffusers refuses whole files of SD 3 for a key without "lora"."""
    return {
        f"{component}." + key.removeprefix("base_model.model."): value.contiguous() for key, value in peft_state.items()
    }


def header(facts: Mapping[str, Any], family: Family, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our facts under `diffusion_blend.`, and the keys that ModelSpec 1.0.1 and kohya's readers look for.

    facts: what `diffusion_blend.*` says; title, author and description go to ModelSpec alone.
    """
    entries = {name: value for name, value in facts.items() if name not in ("title", "author", "description")}
    text = {f"diffusion_blend.{name}": _text(value) for name, value in entries.items() if value not in (None, "")}
    text["diffusion_blend.format"] = FORMAT
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": family.architecture,
        "implementation": "https://github.com/huggingface/diffusers",
        "title": facts["title"],
        "description": facts.get("description", ""),
        "author": facts.get("author", ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hash_sha256": "0x" + tensor_hash(tensors),
        "prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}.get(facts.get("prediction_type", ""), ""),
    }
    kohya = {
        "network_module": "networks.lora",
        "network_dim": facts["rank"],
        "network_alpha": facts["rank"],
        "base_model_version": family.base_version,
        "sd_model_name": facts["base_model"],
        "new_sd_model_hash": facts.get("base_sha256", ""),
        "steps": facts["step"],
        "seed": facts["seed"],
        "output_name": facts["title"],
    }
    text |= {f"modelspec.{name}": str(value) for name, value in spec.items() if value != ""}
    return text | {f"ss_{name}": str(value) for name, value in kohya.items() if value != ""}


def save_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file under another name, then rename it: whatever happens, no half file bears the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.part")
    try:
        passing.write_bytes(save(dict(tensors), dict(metadata)))  # save_file's are readable by their owner alone
        with passing.open("rb+") as file:
            os.fsync(file.fileno())
        passing.replace(path)
    except OSError as error:
        passing.unlink(missing_ok=True)
        raise BlendError(
            f"{path} could not be written ({error.strerror or error}); an earlier file of that name is untouched. Free "
            "some space, and give the same command again."
        ) from error


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bytes in the file's order, its header left out (ModelSpec's hash), in hexadecimal."""
    content = save(dict(tensors))
    start = 8 + int.from_bytes(content[:8], "little")
    return hashlib.sha256(content[start:]).hexdigest()


def training_command() -> str:
    """How this process was started; of places on this machine only the last part of the path."""
    return shlex.join([Path(sys.argv[0]).name, *map(without_folders, sys.argv[1:])])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
