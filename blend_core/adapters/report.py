"""What loading one LoRA came to, for a person to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """One LoRA on one host. left_out: what was not used, with the number of keys or the reason."""

    label: str
    path: str
    spelling: str
    adapter_name: str | None
    matched: int
    in_file: int
    ranks: tuple[int, ...]
    scale_source: str
    family: str
    kinds: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f", adapter {self.adapter_name!r}" if self.adapter_name else ""
        lines = [
            f"{self.label}: {self.matched} of {self.in_file} modules on {self.family}",
            f"  spelling: {self.spelling}{name}",
            f"  {contents_words(self.ranks, self.kinds)}; {self.scale_source}",
            *(f"  not used: {left_out_words(what, why)}" for what, why in list(self.left_out.items())[:6]),
            *(f"  note: {note}" for note in self.notes),
        ]
        if len(self.left_out) > 6:
            lines.insert(9, f"  not used: {len(self.left_out) - 6} more")
        return "\n".join(lines)


def contents_words(ranks: Sequence[int], kinds: Mapping[str, int]) -> str:
    """The ranks, and how many modules hold something else than plain LoRA."""
    words = [f"rank {', '.join(map(str, ranks))}"] if ranks else []
    return ", ".join([*words, *(f"{kind} in {count}" for kind, count in kinds.items())])


def left_out_words(what: str, why: str | int) -> str:
    """A count before what it counts (12 text-encoder keys), or a name with the reason in brackets."""
    return f"{why} {what}" if isinstance(why, int) else f"{what} ({why})"
