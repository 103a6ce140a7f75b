"""Figures of the source tree: modules, functions, imports between files, and the limits that they keep.

    python -m tests.figures        # prints them, and exits with 1 where a limit is broken

An arrow goes from a file to a file of the pack that it imports, wherever the import stands: at the top, within a
function or under TYPE_CHECKING. `from .package import name` is an arrow to the module `name` where there is one, else
to the package's own file.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The rooms from the lowest: a file may import its own room and lower ones. Rooms of one line do not import one another.
FLOORS = (("blend_core",), ("pipelines", "nodes"), ("trainers",), ("lab",))
ROOMS = tuple(room for floor in FLOORS for room in floor)
MOST_MODULES = 14  # in a folder, its __init__ included
MOST_LINES = 350  # of a file
MEDIAN_LINES = (5, 10)  # of a function, from `def` to its end


@dataclass(frozen=True)
class Module:
    """One file. path: from the pack's root, with slashes.  functions: the lines of its functions and methods.

    imports: the paths of the pack's files that it imports.
    """

    path: str
    lines: int
    functions: tuple[int, ...]
    imports: frozenset[str]

    @property
    def room(self) -> str:
        """The folder of the pack's root that it lies in."""
        return self.path.split("/")[0]

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Figures:
    """What the limits are about."""

    modules: int
    functions: int
    arrows: int
    median_lines: float
    circles: list[list[str]]
    upward: list[str]
    crowded: dict[str, int]
    long_files: dict[str, int] = field(default_factory=dict)

    def broken(self) -> list[str]:
        """A sentence for each limit that does not hold."""
        low, high = MEDIAN_LINES
        said = [f"files that import one another: {', '.join(circle)}" for circle in self.circles]
        said += [f"an arrow upward: {arrow}" for arrow in self.upward]
        said += [f"{folder}/ holds {count} modules, at most {MOST_MODULES}" for folder, count in self.crowded.items()]
        said += [f"{path} has {count} lines, at most {MOST_LINES}" for path, count in self.long_files.items()]
        if not low <= self.median_lines <= high:
            said.append(f"the median function has {self.median_lines:g} lines, expected {low} to {high}")
        return said

    def __str__(self) -> str:
        rows = [
            ("modules", self.modules),
            ("functions", self.functions),
            ("arrows between files", self.arrows),
            ("circles between files", len(self.circles)),
            ("arrows upward between rooms", len(self.upward)),
            (f"folders with more than {MOST_MODULES} modules", len(self.crowded)),
            (f"files over {MOST_LINES} lines", len(self.long_files)),
            ("median lines of a function", f"{self.median_lines:g}"),
        ]
        return "\n".join([f"{name:34}{value:>6}" for name, value in rows] + self.broken())


def imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(level, module, names) of every import in a file; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


@cache
def files() -> tuple[str, ...]:
    """The paths of the pack's Python files, sorted."""
    return tuple(sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")))


@cache
def modules() -> Mapping[str, Module]:
    """Every file of the pack, by its path."""
    return {path: _module(path) for path in files()}


def _module(path: str) -> Module:
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Module(
        path,
        len(text.splitlines()),
        tuple(node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno),
        frozenset(_arrows(path, tree)),
    )


def _arrows(path: str, tree: ast.AST) -> Iterator[str]:
    folder = path.split("/")[:-1]
    for level, module, names in imports(tree):
        if level:
            start = [*folder[: len(folder) - level + 1], *filter(None, module.split("."))]
            found = _file(start)
            inner = [_file([*start, name]) for name in names]
            yield from (target for target in inner if target)
            if found and not all(inner):
                yield found


def _file(parts: list[str]) -> str | None:
    """The path of a module or package."""
    name = "/".join(parts)
    return next((path for path in (f"{name}.py", f"{name}/__init__.py") if path in files()), None)


def circles() -> list[list[str]]:
    """Groups of files in which each reaches every other one by imports, sorted."""
    reach = {path: _reached(path) for path in files()}
    groups = {frozenset(other for other in reach[path] if path in reach[other]) for path in files()}
    return sorted(sorted(group) for group in groups if group)


def _reached(path: str) -> set[str]:
    """All files that `path` imports, through others too; itself if there is a way back."""
    seen: set[str] = set()
    pending = [*modules()[path].imports]
    while pending:
        target = pending.pop()
        if target not in seen:
            seen.add(target)
            pending += modules()[target].imports
    return seen


def upward() -> list[str]:
    """Imports of a room that does not lie below, as `from -> to`."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    arrows = ((module, target) for module in modules().values() for target in sorted(module.imports))
    return [
        f"{module.path} -> {target}"
        for module, target in arrows
        if (room := target.split("/")[0]) != module.room and floor[room] >= floor[module.room]
    ]


def crowded() -> dict[str, int]:
    """Folders with too many modules."""
    folders = [module.folder for module in modules().values()]
    return {folder: count for folder in sorted({*folders}) if (count := folders.count(folder)) > MOST_MODULES}


def figures() -> Figures:
    """All of them, of the tree as it lies on the disk."""
    every = modules().values()
    lines = [count for module in every for count in module.functions]
    return Figures(
        modules=len(every),
        functions=len(lines),
        arrows=sum(len(module.imports) for module in every),
        median_lines=statistics.median(lines),
        circles=circles(),
        upward=upward(),
        crowded=crowded(),
        long_files={module.path: module.lines for module in every if module.lines > MOST_LINES},
    )


if __name__ == "__main__":
    print(measured := figures())
    sys.exit(bool(measured.broken()))
