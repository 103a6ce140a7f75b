"""Keys that are no part of a LoRA: left out where they change no weight of the model, else refused by their kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import BlendError

_DEPENDS_ON_WEIGHT = "it depends on the model's own weight, so it cannot be blended as low-rank factors"
_NOT_READ = "its factors are of a form that is not read"

# (name, pattern at the end of a key, why it is refused)
_KINDS = tuple(
    (name, re.compile(rf"(?:{pattern})$"), reason)
    for name, pattern, reason in (
        ("OFT or BOFT", r"\.(oft_blocks|oft_diag|rescale|b?oft_[RS].*)", _DEPENDS_ON_WEIGHT),
        ("IA3", r"\.on_input|\.ia3_l(\..+)?", _DEPENDS_ON_WEIGHT),
        ("GLoRA", r"\.(a[12]|b[12]|bm)\.weight", _DEPENDS_ON_WEIGHT),
        ("VeRA", r"vera_(lambda_[bd]|[AB])(\.[^.]+)?", _NOT_READ),
        ("a replaced weight", r"\.(set_weight|reshape_weight)", "it is no difference to add"),
        ("embedding LoRA", r"\.lora_embedding_[AB](\..+)?", "embeddings belong to no linear or convolution layer"),
    )
)
_WHOLE_MODULE = re.compile(r"(^|\.)modules_to_save\.|(\.|^)(weight|bias)$")
_BASE_LAYER = re.compile(r"\.base_layer\.")  # peft's name for the layer below an adapter
_MODULES_TO_SAVE = re.compile(r"(^|\.)modules_to_save\.")

# (what it is, pattern of a key): next to a LoRA they change no weight of the network
_HARMLESS = tuple(
    (words, re.compile(pattern))
    for words, pattern in (
        ("keys of text embeddings", r"bundle_emb\..+|emb_params|string_to_(param|token)(\..+)?"),
        ("counters of a trainer", r"(global_|current_)?(step|epoch|iteration|update)s?"),
        (
            "scales of the base's eight-bit weights",
            r"scaled_fp8|.+\.(scale_weight|scale_input|weight_scale|input_scale|comfy_quant)",
        ),
    )
)
_OF_THE_BASE = "weights of the base, which a LoRA leaves as they are"


def sorted_out(keys: Iterable[str]) -> tuple[list[str], Counter]:
    """(keys that matter, counts of those that stand next to a LoRA and change no weight), by what they are.

    The state dict of a whole network under peft, which has `base_layer` in its names, holds the base's weights too.
    """
    keys = list(keys)
    whole_network = any(_BASE_LAYER.search(key) for key in keys)
    matter, harmless = [], Counter()
    for key in keys:
        words = next((words for words, pattern in _HARMLESS if pattern.fullmatch(key)), None)
        if words is None and whole_network and not _MODULES_TO_SAVE.search(key) and _kind_of(key) is None:
            words = _OF_THE_BASE
        if words is None:
            matter.append(key)
        else:
            harmless[words] += 1
    return matter, harmless


def refuse(keys: Sequence[str], file: str, *, beside_lora: bool) -> None:
    """Raise for keys no LoRA reader understood. beside_lora: whether the file also holds LoRA factors."""
    for key in keys:
        if kind := _kind_of(key):
            name, reason = kind
            raise BlendError(
                f"{file} holds {name} ({key!r}), expected LoRA, LoHa, LoKr, DoRA or differences; {reason}. "
                "Merge it into a model (in ComfyUI: Load LoRA, then Model as Reward LoRA), or convert it to LoRA."
            )
    whole = [key for key in keys if _WHOLE_MODULE.search(key)]
    if beside_lora and keys:
        raise _extra_keys(whole or keys, file, whole=bool(whole))
    if whole:
        raise BlendError(
            f"{file} holds {len(whole)} whole weights (first: {whole[0]!r}) and no LoRA: "
            "this is a full checkpoint: load it as a model (in ComfyUI, Model as Reward LoRA makes it a basis)."
        )
    if keys:
        raise BlendError(
            f"{file} holds no LoRA keys; it begins with {first_of(keys)}. Expected pairs such as "
            "'....lora_A.weight' and '....lora_B.weight'. Choose a LoRA file."
        )


def first_of(names: Sequence[str], count: int = 3) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more


def _kind_of(key: str) -> tuple[str, str] | None:
    """(name, why it is refused) of a method that is known and not read."""
    return next(((name, reason) for name, pattern, reason in _KINDS if pattern.search(key)), None)


def _extra_keys(keys: Sequence[str], file: str, *, whole: bool) -> BlendError:
    what = "whole modules (modules_to_save, or the base model's own weights)" if whole else "keys of an unknown kind"
    return BlendError(
        f"{file} holds, next to its LoRA, {len(keys)} keys that are {what}: {first_of(keys, 5)}. Only low-rank factors "
        "can be blended, and dropping the rest would be another model. Save the LoRA alone, merge the file, or allow "
        "partial loading."
    )
