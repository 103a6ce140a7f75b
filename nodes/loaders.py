"""The bases of a blend: reward LoRAs from files, and whole models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from weakref import WeakValueDictionary

import folder_paths
from comfy_api.latest import io

from ..blend_core import BlendError, read_adapter
from ..blend_core.adapters import AS_CHOSEN, EXPERTS, is_adapter_file, partner
from ..blend_core.adapters.catalogue import recognised
from ..blend_core.adapters.files import shards_of, without_references
from .host.networks.whole_models import megabytes, network_name, whole_model
from .inputs import CATEGORY, kl_weight_input
from .output import CACHED_TOO, shown
from .types import RewardLoRA, RewardLoRASocket

_LABEL = "reward"  # of a model, which has no file's name


def _trained_with(tooltip: str) -> io.Input:
    """The KL weight that a basis was trained with."""
    return kl_weight_input(
        "kl_weight",
        f"{tooltip} Bases with a higher KL weight stayed nearer to the base and count correspondingly more. If one "
        "basis of a blend does not state it, all count equally.",
    )


def _stated(kl_weight: float | None) -> str:
    return "not stated" if kl_weight is None else f"{kl_weight:g}"


class LoadRewardLoRA(io.ComfyNode):
    """Read one reward LoRA; it is matched with a model only where the blend is applied."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendLoadRewardLoRA",
            display_name="Load Reward LoRA",
            category=CATEGORY,
            description="Loads a LoRA that was trained towards one reward under a KL term, in any common spelling. "
            "For style or character LoRAs use ComfyUI's own Load LoRA.",
            search_aliases=[
                "reward lora",
                "diffusion blend",
                "rl lora",
                "rlhf",
                "preference lora",
                "flow-grpo",
                "dpo",
                "spo",
            ],
            **CACHED_TOO,
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A file in models/loras. A folder with adapter_model.safetensors and adapter_config.json "
                    "(as peft saves it) is listed by its path.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    tooltip="What this reward is called in the blend, such as faithful or beautiful. Empty: the file's "
                    "name.",
                ),
                _trained_with("The factor of the KL term in training (alpha in the paper). 0: as the file says."),
                io.Float.Input(
                    "scale",
                    default=0.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="alpha / rank of the LoRA. 0: as the file or its adapter_config.json says (nearly always "
                    "right); 1 uses the factors as they are; below 0 turns the LoRA round. Not a strength dial: use KL "
                    "Interpolate for that.",
                ),
                io.Boolean.Input(
                    "allow_partial",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Off: a LoRA that fits the model only in part, or is understood only in part, is refused. "
                    "On: the part that fits is used, the rest is named in the report.",
                ),
                io.Combo.Input(
                    "expert",
                    options=list(EXPERTS),
                    default=AS_CHOSEN,
                    optional=True,
                    advanced=True,
                    tooltip="For models of two networks (Wan 2.2), whose LoRAs come as a pair of files: high noise and "
                    "low noise load that file of the pair, whichever of the two lora_name is. The names have to be "
                    "equal but for high and low. as chosen: lora_name itself.",
                ),
            ],
            outputs=[RewardLoRASocket.Output(display_name="reward_lora", tooltip="Connect to Blend Weights.")],
        )

    @classmethod
    def execute(
        cls,
        lora_name: str,
        label: str,
        kl_weight: float,
        scale: float,
        allow_partial: bool = False,
        expert: str = AS_CHOSEN,
    ) -> io.NodeOutput:
        """Read the file and show what it holds."""
        name = _of_pair(lora_name, expert)
        lora = reward_lora(name, label, kl_weight, scale, allow_partial)
        lines = [lora.label, *([f"file: {name}"] if name != lora_name else []), lora.adapter.summary]
        if lora.recognition:
            lines.append(f"{lora.recognition}{_taken_over(lora, label, kl_weight)}")
        return shown("\n".join([*lines, f"KL weight: {_stated(lora.kl_weight)}"]), lora)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, expert: str = AS_CHOSEN, **_) -> tuple:
        """Changes when the file or a config next to it does, or another file becomes its partner."""
        return file_facts(_of_pair(lora_name, expert))

    @classmethod
    def validate_inputs(cls, lora_name: str | None = "", expert: str | None = AS_CHOSEN) -> bool:
        """Refuse a file or a partner that is not there before anything runs; None where a link brings one of the two.

        Raises BlendError, since ComfyUI would put an answer to each of the two inputs, and has none to put it to where
        there is no file to choose.
        """
        if lora_name == "":
            raise BlendError(
                "lora_name is missing, because there is no LoRA in models/loras. Put the reward LoRA's file there, "
                "press R, and choose it."
            )
        if lora_name is not None:
            _path_of(lora_name if expert is None else _of_pair(lora_name, expert))
        return True


class ModelAsRewardLoRA(io.ComfyNode):
    """A basis that is a model of its own: a full fine-tune, or a LoRA of a kind that is no low-rank addition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendModelAsRewardLoRA",
            display_name="Model as Reward LoRA",
            category=CATEGORY,
            description="A whole model in the place of a reward LoRA: a checkpoint that was fully fine-tuned towards a "
            "reward (Diffusion-DPO), or a model with LoRAs of any kind in it. It takes memory of its own.",
            search_aliases=["full checkpoint", "dpo unet", "model basis", "reward checkpoint", "lokr", "dora"],
            **CACHED_TOO,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model that was trained from the base, of the same architecture and prediction type; "
                    "ComfyUI's own LoRA loaders may stand before it. Patches of attention or guidance belong on the "
                    "base instead.",
                ),
                io.String.Input(
                    "label",
                    default=_LABEL,
                    tooltip="What this reward is called in the blend, such as faithful or beautiful. Empty: reward.",
                ),
                _trained_with("The factor of the KL term in training (alpha in the paper). 0: not stated."),
                io.Boolean.Input(
                    "own_copy",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="On: its weights are read once more, in memory of their own. Needed where the model is the "
                    "base with LoRAs in it, since ComfyUI keeps one copy of a file's weights. Off: they are taken as "
                    "they are.",
                ),
            ],
            outputs=[RewardLoRASocket.Output(display_name="reward", tooltip="Connect to Blend Weights.")],
        )

    @classmethod
    def execute(cls, model, label: str, kl_weight: float, own_copy: bool = False) -> io.NodeOutput:
        """Take the model as it is, or copy it, and show what it takes."""
        basis = whole_model(model, label.strip() or _LABEL, kl_weight or None, own_copy)
        size = f"{network_name(basis.model)}, {megabytes(basis.model):.0f} MB next to the base"
        return shown(f"{basis.label}\n{size}\nKL weight: {_stated(basis.kl_weight)}", basis)


class ModelAsBasis(ModelAsRewardLoRA):
    """The same under the id it had first, for graphs that were saved then.

    Not ComfyUI's replacement of nodes: versions before 0.33 have none, and that one needs every optional input.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return replace(super().define_schema(), node_id="DiffusionBlendModelAsBasis", is_deprecated=True)


def files_like(pattern: str) -> list[str]:
    """The files in models/loras that a pattern names, 9 before 10; several patterns are separated by commas or lines.

    * stands for any letters, as in run/checkpoint-*. Raises BlendError where a pattern names none.
    """
    names = lora_names()
    chosen: dict[str, None] = {}
    for part in filter(None, map(str.strip, re.split(r"[,\n]", pattern))):
        wanted = part.replace("\\", "/").replace("[", "[[]")  # brackets are letters of a name
        matches = [name for name in names if fnmatchcase(name.replace("\\", "/"), wanted)]
        if not matches:
            raise BlendError(
                f"files has {part!r}, which is no file in models/loras. Write names as Load Reward LoRA lists them, "
                "with * for what differs, such as run/checkpoint-*."
            )
        chosen |= dict.fromkeys(sorted(matches, key=_counted))
    return list(chosen)


def another_file(basis: RewardLoRA, lora_name: str) -> RewardLoRA:
    """The file `lora_name` in the place of a LoRA: with its label and, where the file states none, its KL weight."""
    lora = reward_lora(lora_name, basis.label, allow_partial=basis.allow_partial)
    return replace(lora, kl_weight=lora.kl_weight or basis.kl_weight).times(*basis.strength)


def file_facts(lora_name: str) -> tuple:
    """What changes when a file or a config next to it does."""
    path = Path(_path_of(lora_name))
    files = [*shards_of(path), *sorted(path.parent.glob("*config.json"))]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _counted(name: str) -> list[str | int]:
    """A sort key that takes numbers as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


_Row = tuple[str, float]
"""Of a stack: a file's name in models/loras, and its model strength."""

_EMPTY = ("", "none")  # how stackers name a row without a file
_STACK = "model strength in lora_stack"


def stacked(stack: Sequence[tuple[str, float, float]] | None) -> tuple[RewardLoRA, ...]:
    """The reward LoRAs of another pack's LORA_STACK: (file name in models/loras, model strength, clip strength) each.

    Rows without a file are left out. A model strength multiplies the LoRA's own scale. A file that is in use already
    at that strength is the same RewardLoRA again, so that two blends of one stack blend the same bases. Raises
    BlendError for rows of another form.
    """
    rows = map(_row, stack or ())
    return tuple(_of_row(name, strength) for name, strength in rows if name.lower() not in _EMPTY)


_IN_USE: WeakValueDictionary[tuple, RewardLoRA] = WeakValueDictionary()


def _row(row: Sequence) -> _Row:
    match row:
        case (str() | None as name, int() | float() as strength, _):
            return (name or "").strip(), float(strength)
    raise BlendError(
        f"lora_stack holds {row!r:.200}, expected (file name, model strength, clip strength). Connect the LORA_STACK "
        "output of a LoRA stacker, or use Load Reward LoRA."
    )


def _of_row(name: str, strength: float) -> RewardLoRA:
    key = (strength, file_facts(name))
    return _IN_USE.get(key) or _IN_USE.setdefault(key, reward_lora(name).times(strength, _STACK))


def reward_lora(
    lora_name: str, label: str = "", kl_weight: float = 0.0, scale: float = 0.0, allow_partial: bool = False
) -> RewardLoRA:
    """What is typed counts, then what the file states, then what the catalogue says of it."""
    adapter = read_adapter(_path_of(lora_name), scale=scale or None, allow_partial=allow_partial)
    recognition = recognised(adapter.path)
    label = label.strip() or (recognition.entry.label if recognition else adapter.label)
    stated = kl_weight or adapter.kl_weight or (recognition.entry.kl_weight if recognition else None)
    return RewardLoRA(label, adapter, stated or None, allow_partial, recognition=recognition)


def _taken_over(lora: RewardLoRA, label: str, kl_weight: float) -> str:
    """Which of a LoRA's facts are the catalogue's, for a person to read; empty for none."""
    from_catalogue = {
        "label": not label.strip(),
        "KL weight": bool(lora.kl_weight) and not (kl_weight or lora.adapter.kl_weight),
    }
    names = " and ".join(name for name, holds in from_catalogue.items() if holds)
    return f"; {names} from there" if names else ""


def _of_pair(lora_name: str, expert: str) -> str:
    """The file of a name, or its partner for one of two networks. Raises BlendError where there is none."""
    if expert == AS_CHOSEN:
        return lora_name
    _path_of(lora_name)
    return partner(lora_name, expert, lora_names())


def _path_of(lora_name: str) -> str:
    """The file of a name as ComfyUI lists it, here or on Windows. Raises BlendError where there is none."""
    names = dict.fromkeys((lora_name, lora_name.replace("\\", "/")))
    path = next(filter(None, (folder_paths.get_full_path("loras", name) for name in names)), None)
    if path is None:
        raise BlendError(f"{lora_name} is not in models/loras. Put the file there and press R, or choose another.")
    return path


def lora_names() -> list[str]:
    """The files in models/loras that may be LoRAs, as ComfyUI lists them."""
    names = [name for name in folder_paths.get_filename_list("loras") if is_adapter_file(name)]
    shown = set(without_references([Path(name) for name in names]))
    return [name for name in names if Path(name) in shown]
