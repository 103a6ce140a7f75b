"""From a file to an Adapter: keys sorted, one adapter chosen, factors checked and scaled. No host is involved."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BlendError
from . import changes
from . import scale as scales
from .changes import Change, Delta, Magnitude
from .factors import Adapter, Factors
from .files import WeightFile, label_of, open_weights, weight_files_in
from .foreign import first_of, refuse
from .scale import AlphaConfig, Scale
from .spelling import Key, canonical, is_text_encoder, parse

_UNNAMED = "(no name)"
_LARGEST_KERNEL = 16  # what a small core and a long `down` fold into is their product


@dataclass(frozen=True)
class _Scaling:
    """How the modules of one file get their scale."""

    config: AlphaConfig | None
    typed: Scale | None

    def of(self, module: str, rank: int | None, alpha: Tensor | None) -> Scale:
        return self.typed or scales.module_scale(module, rank, alpha, self.config)


def read_adapter(path: str | os.PathLike, *, adapter_name: str | None = None, scale: float | None = None) -> Adapter:
    """The LoRA at `path` (a file, or a folder with one weight file and its config), in any spelling.

    adapter_name: which one to take from a file that holds several.  scale: overrides what file and config say.
    Raises BlendError for anything that is no LoRA, LoHa, LoKr, DoRA or difference of weights, and for tensors that
    cannot be what was trained.
    """
    file = open_weights(path)
    keys, text_encoder_keys = _sorted_keys(file)
    keys, name, others = _one_adapter(keys, adapter_name, file.path.name)
    by_module = _by_module(keys, file.path.name)
    typed = None if scale is None else scales.typed_scale(scale)
    needs_config = typed is None and any("alpha" not in record for record in by_module.values())
    scaling = _Scaling(scales.alpha_config(file.path.parent, file.metadata) if needs_config else None, typed)
    _check_magnitudes(by_module, scaling.config, file.path.name)
    try:
        modules = _modules(file, by_module, scaling)
    except BlendError as error:
        raise error if file.path.name in str(error) else BlendError(f"{file.path.name}: {error}") from error
    return Adapter(
        path=str(file.path),
        label=label_of(file.path),
        modules={name: module.change for name, module in modules.items()},
        spelling=_spelling(keys),
        adapter_name=name,
        scale_source=_scale_source(modules.values(), keys, scaling, file.path.parent),
        skipped=_skipped(text_encoder_keys, others),
        metadata=dict(file.metadata),
        notes=_notes(modules, scaling.config, others, name, file.path),
    )


def _sorted_keys(file: WeightFile) -> tuple[list[Key], int]:
    """(keys of the network, count of text-encoder keys); raises for keys of any other kind."""
    texts = [key for key in file.keys if not is_text_encoder(key)]
    text_encoder = [key for key in file.keys if is_text_encoder(key)]
    parsed = {key: parse(key) for key in texts}
    keys = [key for key in parsed.values() if key is not None]
    has_lora = any(key.role != "alpha" for key in keys)
    refuse([text for text, key in parsed.items() if key is None], file.path.name, beside_lora=has_lora)
    if not has_lora:
        raise _no_factors(file, text_encoder)
    return keys, len(text_encoder)


def _no_factors(file: WeightFile, text_encoder: Sequence[str]) -> BlendError:
    refuse([key for key in text_encoder if parse(key) is None], file.path.name, beside_lora=False)
    if text_encoder:
        return BlendError(
            f"{file.path.name} holds only text-encoder keys ({len(text_encoder)}, first: {text_encoder[0]!r}). "
            "A blend acts on the model's predictions: choose a LoRA trained on the UNet or transformer."
        )
    return BlendError(
        f"{file.path.name} holds no pair of down and up; it begins with {first_of(file.keys)}. "
        "The file was badly converted: save it again."
    )


def _one_adapter(keys: Sequence[Key], wanted: str | None, file: str) -> tuple[list[Key], str | None, Counter]:
    """(keys of one adapter, its name, key counts of the others). `.alpha` belongs to whichever is taken."""
    counts = Counter(key.adapter or _UNNAMED for key in keys if key.role != "alpha")
    # peft drops the name "default" on saving, so that with and without it is one adapter.
    if set(counts) == {_UNNAMED, "default"} and wanted in (None, "default"):
        return list(keys), "default", Counter()
    name = _chosen(counts, wanted, file)
    taken = [key for key in keys if key.role == "alpha" or (key.adapter or _UNNAMED) == name]
    counts.pop(name)
    return taken, None if name == _UNNAMED else name, counts


def _chosen(counts: Counter, wanted: str | None, file: str) -> str:
    names = sorted(counts)
    if wanted is not None and (wanted in counts or names != [_UNNAMED]):
        if wanted not in counts:
            raise BlendError(f"{file} has no adapter {wanted!r}; it holds {', '.join(names)}. Choose one of these.")
        return wanted
    if len(names) == 1:
        return names[0]
    if "default" in counts:
        return "default"
    raise BlendError(
        f"{file} holds {len(names)} adapters ({', '.join(names)}) and none is called 'default'. "
        "Choose one by its name (adapter_name)."
    )


def _by_module(keys: Iterable[Key], file: str) -> dict[str, dict[str, Key]]:
    """Role -> key for each module, by the path as first written; one role written twice raises."""
    records: dict[str, dict[str, Key]] = {}
    for key in keys:
        record = records.setdefault(canonical(key.module), {})
        if key.role in record:
            raise BlendError(
                f"{file} names one module twice: {record[key.role].text!r} and {key.text!r}. "
                "Adding both would double it; keep one of the two spellings."
            )
        record[key.role] = key
    return {next(iter(record.values())).module: record for record in records.values()}


@dataclass(frozen=True)
class _Module:
    """What a file does to one module. rank: what alpha was divided by; None where there is none."""

    change: Factors | Change
    scale: Scale | None
    rank: int | None


def _modules(file: WeightFile, by_module: Mapping[str, Mapping[str, Key]], scaling: _Scaling) -> dict[str, _Module]:
    """What changes every module; tensors read in one pass over the file."""
    kinds = {module: _kind(module, record, file.path.name) for module, record in by_module.items()}
    tensors = file.read([key.text for record in by_module.values() for key in record.values()])
    modules = {}
    for module, record in by_module.items():
        parts = {role: _checked(tensors[key.text], key) for role, key in record.items()}
        try:
            modules[module] = kinds[module].read(module, parts, scaling)
        except BlendError as error:
            raise error if module in str(error) else BlendError(f"{module}: {error}") from error
    return modules


def _scaled(build: Callable[[Mapping[str, Tensor]], tuple[Factors | Delta, int | None]]):
    """A reader of a product, whose alpha is divided by its rank."""

    def read(module: str, parts: Mapping[str, Tensor], scaling: _Scaling) -> _Module:
        delta, rank = build({role: tensor for role, tensor in parts.items() if role not in _BESIDE})
        scale = scaling.of(module, rank, parts.get("alpha"))
        return _Module(_change(module, replace(delta, scale=scale.value), parts), scale, rank)

    return read


def _difference(module: str, parts: Mapping[str, Tensor], scaling: _Scaling) -> _Module:
    delta = changes.difference({"diff": parts["diff"]}) if "diff" in parts else None
    return _Module(_change(module, delta, parts), None, None)


def _factors(parts: Mapping[str, Tensor]) -> tuple[Factors, int]:
    """Factors of scale 1, and their rank: `up` flattened to (out, rank), a Tucker core folded into `down`."""
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        down = _fold_core(parts["mid"], down)
    if up.ndim > 2 and set(up.shape[2:]) == {1}:
        up = up.flatten(1)
    if up.ndim != 2 or down.ndim < 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise BlendError(
            f"down has shape {tuple(down.shape)} and up {tuple(up.shape)}, expected (rank, in) and "
            "(out, rank) with one rank of at least 1. The file was badly converted: save it again."
        )
    return Factors(down, up, 1.0), down.shape[0]


@dataclass(frozen=True)
class _Kind:
    """A way to change a weight. needs: per part, the roles of which one group must be complete."""

    name: str
    needs: tuple[tuple[set[str], ...], ...]
    read: Callable[[str, Mapping[str, Tensor], _Scaling], _Module]
    may_have: frozenset[str] = frozenset()

    @property
    def roles(self) -> frozenset[str]:
        """All that can stand in it."""
        return self.may_have.union(*(group for part in self.needs for group in part))


_BESIDE = {"alpha", "bias", "diff_b", "magnitude", "dora_scale"}
_KINDS = (
    _Kind("LoRA", (({"down"},), ({"up"},)), _scaled(_factors), frozenset({"mid"})),
    _Kind(
        "LoHa",
        tuple(({f"hada_{factor}"},) for factor in ("w1_a", "w1_b", "w2_a", "w2_b")),
        _scaled(changes.loha),
        frozenset({"hada_t1", "hada_t2"}),
    ),
    _Kind(
        "LoKr",
        tuple(({f"lokr_{w}"}, {f"lokr_{w}_a", f"lokr_{w}_b"}) for w in ("w1", "w2")),
        _scaled(changes.lokr),
        frozenset({"lokr_t2"}),
    ),
    _Kind("whole difference", (({"diff"},),), _difference),
    _Kind("bias difference", (({"diff_b"},),), _difference),
)


def _kind(module: str, record: Mapping[str, Key], file: str) -> _Kind:
    """What a module's keys are together. Raises BlendError where some are missing, or two kinds meet."""
    roles = record.keys() - _BESIDE or record.keys()
    kinds = [kind for kind in _KINDS if kind.roles & roles] or [_KINDS[0]]
    if len(kinds) > 1:
        raise BlendError(
            f"{file}: {module} holds {' and '.join(kind.name for kind in kinds)} at once, expected one of them. "
            "The file was badly converted: save it again."
        )
    (kind,) = kinds
    for part in kind.needs:
        if not any(group <= record.keys() for group in part):
            present = next(iter(record.values()))
            missing = min((sorted(group - record.keys()) for group in part), key=len)
            raise BlendError(
                f"{file}: {module} has {present.role} ({present.text!r}) but no {' and '.join(missing)}. A {kind.name} "
                "needs both; the file was cut or badly converted: save or download it again."
            )
    return kind


def _change(module: str, delta: Factors | Delta | None, parts: Mapping[str, Tensor]) -> Factors | Change:
    """The delta with what stands beside it."""
    bias = None
    if "bias" in parts:  # of a LoRA's `up`: scaled as its product is
        bias = parts["bias"].float() * delta.scale
    if "diff_b" in parts:
        bias = parts["diff_b"].float() + (0 if bias is None else bias)
    magnitude = _magnitude(module, delta, parts)
    if bias is None and magnitude is None and isinstance(delta, Factors):
        return delta
    if bias is not None and bias.ndim != 1:
        raise BlendError(f"{module}: the bias has shape {tuple(bias.shape)}, expected (out,). Save the file again.")
    return Change(delta, magnitude, bias)


def _magnitude(module: str, delta: Factors | Delta | None, parts: Mapping[str, Tensor]) -> Magnitude | None:
    """peft's magnitudes are of rows; LyCORIS writes those of columns too, told apart as ComfyUI does."""
    values = parts.get("magnitude", parts.get("dora_scale"))
    if values is None:
        return None
    of_rows = "magnitude" in parts or values.shape[:1] == delta.shape[:1]
    if of_rows and values.numel() != delta.shape[0]:
        raise BlendError(
            f"{module}: DoRA's magnitude has shape {tuple(values.shape)}, expected {delta.shape[0]} numbers, one per "
            "output row. The file was badly converted: save it again."
        )
    return Magnitude(values.flatten(), of_rows)


def _check_magnitudes(by_module: Mapping[str, Mapping[str, Key]], config: AlphaConfig | None, file: str) -> None:
    """Raise BlendError for a DoRA without its magnitudes, and for magnitudes without a LoRA."""
    with_magnitude = [record for record in by_module.values() if {"magnitude", "dora_scale"} & record.keys()]
    if config is not None and config.dora and not with_magnitude:
        raise BlendError(
            f"{config.source} says DoRA (use_dora), but {file} holds no magnitudes; loaded as LoRA it would be another "
            "model. Save it again with peft, or merge it into a model."
        )
    for record in with_magnitude:
        if not record.keys() - _BESIDE:
            key = next(iter(record.values()))
            raise BlendError(
                f"{file} holds DoRA's magnitude {key.text!r} without the LoRA it belongs to. The file was cut: save or "
                "download it again."
            )


def _checked(tensor: Tensor, key: Key) -> Tensor:
    """A finite floating tensor; fp8 is widened to fp32, since it has no arithmetic of its own."""
    if key.role == "alpha":
        return tensor
    if not tensor.is_floating_point():
        raise BlendError(
            f"{key.text!r} holds {tensor.dtype}, expected a floating type. Save the LoRA in fp16, bf16 or fp32."
        )
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    if not torch.isfinite(tensor).all():
        raise BlendError(
            f"{key.text!r} holds NaN or inf, expected finite numbers. The training diverged, or fp16 overflowed: "
            "take an earlier checkpoint."
        )
    return tensor


def _fold_core(mid: Tensor, down: Tensor) -> Tensor:
    """The kernel that does `down` (rank, in, 1, 1) and then `mid` (rank, rank, kh, kw) in one convolution."""
    down = down.flatten(1) if down.ndim > 2 and set(down.shape[2:]) == {1} else down
    kernel = mid.shape[2:]
    square = mid.ndim > 2 and down.ndim == 2 and mid.shape[0] == mid.shape[1] == down.shape[0]
    if not square or max(kernel) > _LARGEST_KERNEL:
        raise BlendError(
            f"lora_mid has shape {tuple(mid.shape)} and down {tuple(down.shape)}, expected "
            f"(rank, rank, kh, kw) with kh and kw up to {_LARGEST_KERNEL}, and (rank, in, 1, 1). The file was badly "
            "converted: save it again."
        )
    return torch.einsum("mr...,ri->mi...", mid.float(), down.float()).to(down.dtype)


def _spelling(keys: Sequence[Key]) -> str:
    counts = Counter(key.dialect for key in keys if key.style != "alpha")
    return " + ".join(words for words, _ in counts.most_common(3))


def _scale_source(modules: Iterable[_Module], keys: Sequence[Key], scaling: _Scaling, folder: Path) -> str:
    text = scales.summary([module.scale for module in modules if module.scale])
    nothing_found = scaling.typed is None and scaling.config is None and not any(key.role == "alpha" for key in keys)
    if nothing_found and any(key.style == "peft" for key in keys):
        text += f"; peft keeps alpha in a second file, which would have to be {folder / 'adapter_config.json'}"
    return text


def _skipped(text_encoder_keys: int, others: Counter) -> dict[str, str | int]:
    skipped: dict[str, str | int] = {"text-encoder keys": text_encoder_keys} if text_encoder_keys else {}
    return skipped | {f"keys of adapter {name!r}": count for name, count in others.items()}


def _notes(
    modules: Mapping[str, _Module], config: AlphaConfig | None, others: Counter, name: str | None, path: Path
) -> tuple[str, ...]:
    notes = []
    if others:
        notes.append(f"took adapter {name or _UNNAMED!r}; the file also holds {', '.join(sorted(others))}")
    if config is None:
        return tuple(notes)
    unlike = [
        module
        for module, factors in modules.items()
        if factors.rank and config.rank_of(module) not in (None, factors.rank)
    ]
    if unlike:
        said, found = config.rank_of(unlike[0]), modules[unlike[0]].rank
        notes.append(f"{config.source} says rank {said}, the tensors of {first_of(unlike, 1)} have {found}: kept these")
    files = len(weight_files_in(path.parent))
    if files > 1 and config.source.endswith(".json"):
        notes.append(f"{config.source} lies beside {files} weight files; make sure that it belongs to this one")
    return tuple(notes)
