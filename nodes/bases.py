"""Loading reward LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import folder_paths
from comfy_api.latest import io

from ..blend_core import BlendError, is_adapter_file, read_adapter
from .showing import shown
from .sockets import CATEGORY, RewardLoRA, RewardLoRASocket


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
            search_aliases=["reward lora", "diffusion blend", "rl lora", "preference lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=_lora_names(),
                    tooltip="A file in models/loras. A folder with adapter_model.safetensors and adapter_config.json "
                    "(as peft saves it) is listed by its path.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    tooltip="What this reward is called in the blend, such as faithful or beautiful. Empty: the file's "
                    "name.",
                ),
                io.Float.Input(
                    "kl_weight",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.0001,
                    round=False,
                    tooltip="The factor of the KL term in training (alpha in the paper). 0: as the file says. Bases "
                    "with a higher KL weight stayed nearer to the base and count correspondingly more. If one basis of "
                    "a blend does not state it, all count alike.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="alpha / rank of the LoRA. 0: as the file or its adapter_config.json says (nearly always "
                    "right); 1 uses the factors as they are. Not a strength dial: use KL Interpolate for that.",
                ),
                io.Boolean.Input(
                    "allow_partial",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Off: a LoRA that fits the model only in part is refused. On: the part that fits is used, "
                    "the rest is named in the report.",
                ),
            ],
            outputs=[RewardLoRASocket.Output(display_name="reward_lora", tooltip="Connect to Blend Weights.")],
        )

    @classmethod
    def execute(
        cls, lora_name: str, label: str, kl_weight: float, scale: float, allow_partial: bool = False
    ) -> io.NodeOutput:
        """Read the file and show what it holds."""
        lora = _loaded(lora_name, label, kl_weight, scale, allow_partial)
        stated = "not stated" if lora.kl_weight is None else f"{lora.kl_weight:g}"
        return shown(cls, f"{lora.label}\n{lora.adapter.summary}\nKL weight: {stated}", lora)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_) -> tuple:
        """Changes when the file or a config beside it does."""
        path = Path(folder_paths.get_full_path("loras", lora_name) or "")
        files = [path, *sorted(path.parent.glob("*config.json"))]
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())

    @classmethod
    def validate_inputs(cls, lora_name: str) -> bool | str:
        """Refuse a file that is no longer there before anything runs."""
        try:
            _path_of(lora_name)
        except BlendError as error:
            return str(error)
        return True


def stacked(stack: Sequence[tuple[str, float, float]] | None) -> tuple[RewardLoRA, ...]:
    """The reward LoRAs of another pack's LORA_STACK: (file name in models/loras, model strength, clip strength) each.

    A file that is in use already is the same RewardLoRA again, so that two blends of one stack blend the same bases.
    """
    return tuple(_of_entry(entry) for entry in stack or ())


_IN_USE: WeakValueDictionary[tuple, RewardLoRA] = WeakValueDictionary()


def _of_entry(entry: tuple[str, float, float]) -> RewardLoRA:
    match entry:
        case (str(name), 1, _):
            key = LoadRewardLoRA.fingerprint_inputs(name)
            return _IN_USE.get(key) or _IN_USE.setdefault(key, _loaded(name))
        case (str(name), strength, _):
            raise BlendError(
                f"{name} came in lora_stack with model strength {strength}, expected 1: set it to 1 there, and say in "
                "weights how much of it to blend."
            )
    raise BlendError(
        f"lora_stack holds {entry!r:.200}, expected (file name, model strength, clip strength). Connect the LORA_STACK "
        "output of a LoRA stacker, or use Load Reward LoRA."
    )


def _loaded(
    lora_name: str, label: str = "", kl_weight: float = 0.0, scale: float = 0.0, allow_partial: bool = False
) -> RewardLoRA:
    adapter = read_adapter(_path_of(lora_name), scale=scale or None)
    return RewardLoRA(label.strip() or adapter.label, adapter, kl_weight or adapter.kl_weight, allow_partial)


def _path_of(lora_name: str) -> str:
    path = folder_paths.get_full_path("loras", lora_name)
    if path is None:
        raise BlendError(f"{lora_name} is not in models/loras. Put the file there and press R, or choose another.")
    return path


def _lora_names() -> list[str]:
    return [name for name in folder_paths.get_filename_list("loras") if is_adapter_file(name)]
