"""How a key of a LoRA file is spelled: module path, role and adapter name, and the words for each dialect.

`canonical` is the one form in which names of a file and names of a host meet: prefixes dropped, `.` turned into `_`.
"""

import re
from dataclasses import dataclass

_PREFIX = re.compile(
    r"module\.|base_model\.model\.|pipe\.|unet\.|(conditional_)?transformer\.|diffusion_model\.|model\."
    r"|lora_unet_{1,2}|lora_transformer_|lycoris_"
)
_TEXT_ENCODER = re.compile(
    r"text_encoders?(_\d)?[._]|text_model[._]|lora_te\d?_|lora_prior_te_|(clip_[lgh]|t5xxl|hydit_clip)\."
    r"|conditioner\.embedders\.|cond_stage_model\."
)
_NATIVE = re.compile(r"(input_blocks|middle_block|output_blocks|joint_blocks|double_blocks|single_blocks)[._]")
_WAN_NATIVE = re.compile(r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]")

_ADAPTER = r"(?:\.(?P<adapter>.+(?<!\.bias)))?"  # an adapter's name, between the role and the end

# (style, pattern): the first that matches the whole key wins.
_STYLES = tuple(
    (style, re.compile(pattern))
    for style, pattern in (
        ("xlabs", r"(?P<module>.+\.processor\.(?:qkv|proj)_lora\d?)\.(?P<role>down|up)\.weight"),
        ("processor", r"(?P<module>.+\.processor\..+)_lora\.(?P<role>down|up)\.weight"),
        ("peft", rf"(?P<module>.+)\.lora_(?P<role>[AB]){_ADAPTER}\.weight"),
        ("peft", r"(?P<module>.+)\.lora_(?P<role>[AB])"),
        ("kohya", rf"(?P<module>.+)\.lora_(?P<role>down|up|mid){_ADAPTER}\.weight"),
        ("dotted", r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<role>down|up)\.weight"),
        ("dotted", r"(?P<module>.+)_lora\.(?P<role>down|up)\.weight"),
        ("bias", r"(?P<module>.+?)(?:\.lora_(?:B|up)(?:\.(?P<adapter>[^.]+))?|[._]lora\.up)\.bias"),
        ("eight_bits", r"(?P<module>.+)\.lora_(?P<role>down|up|A|B)\.scale_weight"),
        ("magnitude", r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"),
        ("magnitude", r"(?P<module>.+)\.magnitude"),  # ai-toolkit's
        (
            "products",
            r"(?P<module>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
            r"(?:\.(?P<adapter>[^.]+))?",
        ),
        ("dora_scale", r"(?P<module>.+)\.dora_scale"),
        ("bias_difference", r"(?P<module>.+)\.(?:bias\.diff|diff_b|b_norm)"),
        ("difference", r"(?P<module>.+)\.(?:diff|w_norm)"),
        ("difference_of_modulation", r"(?P<module>.+)\.diff_m"),  # LightX2V's, of the parameter of this name
        ("alpha", r"(?P<module>.+?)(?:[._]lora)?\.(?P<role>alpha)"),
    )
)
_ROLES = {
    ("peft", "A"): "down",
    ("peft", "B"): "up",
    ("eight_bits", "A"): "down_scale",
    ("eight_bits", "B"): "up_scale",
    ("eight_bits", "down"): "down_scale",
    ("eight_bits", "up"): "up_scale",
    ("bias_difference", None): "diff_b",
    ("difference", None): "diff",
    ("difference_of_modulation", None): "diff",
}
_BELOW = {"difference_of_modulation": ".modulation"}  # what is changed, below the module that the key names


@dataclass(frozen=True)
class Key:
    """One key of a file, taken apart. role: what its tensor is to the module. style: how its last part is written."""

    text: str
    module: str
    role: str
    adapter: str | None
    style: str
    dialect: str


def parse(key: str) -> Key | None:
    """`key` taken apart, or None when it is no part of anything that can be blended."""
    for style, pattern in _STYLES:
        match = pattern.fullmatch(key)
        if match:
            parts = match.groupdict()
            prefixes, module = without_prefixes(parts["module"])
            module = _without_processor(module)
            dialect = _dialect(style, prefixes, module, parts.get("adapter"))
            role = parts.get("role")
            role = _ROLES.get((style, role), role or style)
            return Key(key, module + _BELOW.get(style, ""), role, parts.get("adapter"), style, dialect)
    return None


def canonical(name: str) -> str:
    """The form in which names of a file and of a host are compared."""
    return _without_processor(without_prefixes(name)[1]).replace(".", "_")


def is_text_encoder(name: str) -> bool:
    """Whether a key belongs to a text encoder; a blend acts on model predictions and has no use for it."""
    return _TEXT_ENCODER.match(without_prefixes(name)[1]) is not None


def without_prefixes(name: str) -> tuple[tuple[str, ...], str]:
    """(prefixes dropped, rest). torch.compile's `_orig_mod.` goes wherever it stands."""
    plain = re.sub(r"(?<![^.])_orig_mod\.", "", name)
    prefixes = ["_orig_mod."] if plain != name else []
    while match := _PREFIX.match(plain):
        prefixes.append(match.group())
        plain = plain[match.end() :]
    return tuple(prefixes), plain


def _without_processor(module: str) -> str:
    """`attn1.processor.to_out` means `attn1.to_out.0`; XLabs' processors name other modules (see renames)."""
    if ".processor." not in module or re.search(r"\.processor\.(qkv|proj)_lora\d?$", module):
        return module
    module = module.replace(".processor.", ".")
    return module + ".0" if module.endswith(".to_out") else module


def _dialect(style: str, prefixes: tuple[str, ...], module: str, adapter: str | None) -> str:
    if style in ("xlabs", "processor", "dotted"):
        return {
            "xlabs": "XLabs Flux",
            "processor": "diffusers up to 0.21 (attention processors)",
            "dotted": "diffusers 0.22 and later",
        }[style]
    native = bool(_NATIVE.match(module) or _WAN_NATIVE.match(module))
    for prefix, words in (
        ("lora_unet__", "kohya with two underscores (VideoX-Fun)"),
        ("lora_unet_", f"kohya ({'LDM' if native else 'diffusers'} names)"),
        ("lora_transformer_", "OneTrainer"),
        ("lycoris_", "LyCORIS"),
    ):
        if prefix in prefixes:
            return words
    return _dotted_dialect(prefixes, module, adapter)


def _dotted_dialect(prefixes: tuple[str, ...], module: str, adapter: str | None) -> str:
    if len(prefixes) > 1 or set(prefixes) & {"module.", "_orig_mod.", "pipe."}:
        return f"peft names in wrappers ({' '.join(prefixes)})"
    if prefixes == ("diffusion_model.",):
        return "ComfyUI-native"
    if adapter is not None:
        return "peft state dict"
    if prefixes == ("base_model.model.",):
        return "peft"
    if prefixes:
        return "diffusers with peft names"
    return "BFL Flux" if re.match(r"(double|single)_blocks\.", module) else "peft names, no prefix"
