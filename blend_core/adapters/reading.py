"""From a file to an Adapter: keys sorted, one adapter chosen, factors checked and scaled. No host is involved."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BlendError
from . import scale as scales
from .adapter import Adapter
from .experts import expert_of, note
from .files import WeightFile, label_of, open_weights, weight_files_in
from .foreign import first_of, refuse, sorted_out
from .kinds import BESIDE, Built, Parts, checked, kind_of, scaled
from .names.families import family_of
from .names.spelling import Key, canonical, is_text_encoder, parse
from .scale import AlphaConfig, Scale

_UNNAMED = "(no name)"
_TEXT_ENCODER = "text-encoder keys"
_Records = Mapping[str, Mapping[str, Key]]
"""The keys of each module, by role."""


@dataclass(frozen=True)
class _Module:
    """What a file does to one module, before its scale is known. bound: of the product; see kinds.checked."""

    built: Built
    parts: Parts
    bound: float


def read_adapter(
    path: str | os.PathLike,
    *,
    adapter_name: str | None = None,
    scale: float | None = None,
    allow_partial: bool = False,
) -> Adapter:
    """The LoRA at `path` (a file, a shard of one, or a folder with one weight file and its config), in any spelling.

    adapter_name: which one to take from a file that holds several.  scale: overrides what file and config say; it may
    be negative.  allow_partial: leave out what is not understood, and name it.
    Raises BlendError for anything that is no LoRA, LoHa, LoKr, DoRA or difference of weights, and for tensors that
    cannot be what was trained.
    """
    file = open_weights(path)
    keys, skipped = _sorted_keys(file, allow_partial)
    keys, name, others = _one_adapter(keys, adapter_name, file.path.name)
    records, orphans = _with_their_alphas(_by_module(keys, file.path.name))
    if orphans:
        skipped["alphas of modules that the file does not hold"] = orphans
    typed = None if scale is None else scales.typed_scale(scale)
    try:
        modules = _modules(file, records)
        config, notes = _config(file, records, modules, typed)
        scale_of = {module: _scale(module, record, typed, config) for module, record in modules.items()}
        changes = {
            module: scaled(module, record.built, record.parts, record.bound, scale_of[module])
            for module, record in modules.items()
        }
    except BlendError as error:
        raise error if file.path.name in str(error) else BlendError(f"{file.path.name}: {error}") from error
    expert, why = expert_of(file.path, file.metadata, _looks_like_wan(changes))
    return Adapter(
        path=str(file.path),
        label=label_of(file.path),
        modules=changes,
        spelling=_spelling(keys),
        adapter_name=name,
        scale_source=_scale_source([record for record in scale_of.values() if record], keys, config, typed, file),
        skipped=skipped | {f"keys of adapter {other!r}": count for other, count in others.items()},
        metadata=dict(file.metadata),
        notes=(*_notes(modules, config, others, name, file.path), *notes, *([note(expert, why)] if expert else ())),
        expert=expert,
    )


def _looks_like_wan(modules: Iterable[str]) -> bool:
    return family_of(dict.fromkeys(map(canonical, modules), 0)) == "Wan"


def _sorted_keys(file: WeightFile, allow_partial: bool) -> tuple[list[Key], dict[str, str | int]]:
    """(keys of the network, what is left out); raises for keys of any other kind, unless they may be left out."""
    text_encoder, keys, unknown = [], [], []
    for text in file.keys:
        if is_text_encoder(text):
            text_encoder.append(text)
        elif (key := parse(text)) is not None:
            keys.append(key)
        else:
            unknown.append(text)
    if not any(key.role != "alpha" for key in keys):
        refuse(unknown, file.path.name, beside_lora=False)
        raise _no_factors(file, text_encoder)
    unknown, harmless = sorted_out(unknown)
    if not allow_partial:
        refuse(unknown, file.path.name, beside_lora=True)
    skipped: dict[str, str | int] = {_TEXT_ENCODER: len(text_encoder)} if text_encoder else {}
    return keys, skipped | harmless | dict.fromkeys(unknown, "not understood")


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
    of_adapter = [key for key in keys if key.role == "alpha" or (key.adapter or _UNNAMED) == name]
    counts.pop(name)
    return of_adapter, None if name == _UNNAMED else name, counts


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


def _with_their_alphas(records: _Records) -> tuple[dict[str, Mapping[str, Key]], int]:
    """(the modules that are changed, the number of those that have an alpha and nothing to scale)."""
    changed = {module: record for module, record in records.items() if record.keys() != {"alpha"}}
    return changed, len(records) - len(changed)


def _modules(file: WeightFile, records: _Records) -> dict[str, _Module]:
    """What changes every module, of scale 1; tensors read in one pass over the file."""
    _check_parts(records, file.path.name)
    full_rank = not any("up" in record for record in records.values())
    kinds = {module: kind_of(module, record, file.path.name, full_rank) for module, record in records.items()}
    tensors = file.read([key.text for record in records.values() for key in record.values()])
    modules = {}
    for module, record in records.items():
        try:
            parts, bound = checked({role: tensors[key.text] for role, key in record.items()}, record)
            modules[module] = _Module(kinds[module].build(parts), parts, bound)
        except BlendError as error:
            raise BlendError(f"{module}: {error}") from error
    return modules


def _config(
    file: WeightFile, records: _Records, modules: Mapping[str, _Module], typed: Scale | None
) -> tuple[AlphaConfig | None, tuple[str, ...]]:
    """(the config that the file's scale is from, notes), where anything needs one."""
    if typed is not None or all("alpha" in record for record in records.values()):
        return None, ()
    config, notes = scales.alpha_config(file, {module: record.built.rank for module, record in modules.items()})
    if config is not None and config.dora and not any(_MAGNITUDES & record.keys() for record in records.values()):
        raise BlendError(
            f"{config.source} says DoRA (use_dora), but {file.path.name} holds no magnitudes; loaded as LoRA it would "
            "be another model. Save it again with peft, or merge it into a model."
        )
    return config, notes


def _scale(module: str, record: _Module, typed: Scale | None, config: AlphaConfig | None) -> Scale | None:
    """What a module's product is multiplied by; None for a difference, which has no scale."""
    if not record.built.scalable:
        return None
    return typed or scales.module_scale(module, record.built.rank, record.parts.get("alpha"), config)


_MAGNITUDES = frozenset({"magnitude", "dora_scale"})
_PARTS_OF_A_LORA = {**dict.fromkeys(_MAGNITUDES, "DoRA's magnitude"), "bias": "a LoRA's bias"}


def _check_parts(records: _Records, file: str) -> None:
    """Raise BlendError for what belongs to a LoRA in a module without one."""
    for record in records.values():
        parts = _PARTS_OF_A_LORA.keys() & record.keys()
        if parts and not record.keys() - BESIDE:
            key = record[min(parts)]
            raise BlendError(
                f"{file} holds {_PARTS_OF_A_LORA[key.role]} {key.text!r} without the LoRA it belongs to. The file was "
                "cut: save or download it again."
            )


def _spelling(keys: Sequence[Key]) -> str:
    counts = Counter(key.dialect for key in keys if key.style != "alpha")
    return " + ".join(words for words, _ in counts.most_common(3))


def _scale_source(
    of_modules: Sequence[Scale], keys: Sequence[Key], config: AlphaConfig | None, typed: Scale | None, file: WeightFile
) -> str:
    text = scales.summary(of_modules)
    nothing_found = typed is None and config is None and not any(key.role == "alpha" for key in keys)
    by_peft = any(key.style == "peft" for key in keys) and not any(key.dialect == _NATIVE for key in keys)
    if nothing_found and by_peft and _SOFTWARE not in file.metadata:
        text += "; peft keeps alpha in a second file, adapter_config.json, which would have to be in the same folder"
    return text


_NATIVE = "ComfyUI-native"  # names that peft does not write
_SOFTWARE = "software"  # where ai-toolkit, whose alpha equals the rank, names itself in the header


def _notes(
    modules: Mapping[str, _Module], config: AlphaConfig | None, others: Counter, name: str | None, path: Path
) -> tuple[str, ...]:
    notes = []
    if others:
        notes.append(f"took adapter {name or _UNNAMED!r}; the file also holds {', '.join(sorted(others))}")
    if config is None:
        return tuple(notes)
    differing = [
        module
        for module, record in modules.items()
        if record.built.rank and config.rank_of(module) not in (None, record.built.rank)
    ]
    if differing:
        said, rank = config.rank_of(differing[0]), modules[differing[0]].built.rank
        notes.append(
            f"{config.source} says rank {said}, the tensors of {first_of(differing, 1)} have {rank}: kept these"
        )
    files = len(weight_files_in(path.parent))
    if files > 1 and config.source.endswith(".json"):
        notes.append(f"{config.source} lies next to {files} weight files; make sure that it belongs to this one")
    return tuple(notes)
