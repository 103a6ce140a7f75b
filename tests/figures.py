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
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The rooms from the lowest: a file may import its own room and lower ones. Rooms of one line do not import one another.
FLOORS = (("blend_core",), ("pipelines", "nodes"), ("trainers",), ("lab",))
BARRED = {("lab", "nodes"), ("trainers", "nodes")}  # lower, and yet not to be imported: it needs ComfyUI
MOST_MODULES = 14  # in a folder, its __init__ included
MOST_LINES = 350  # of a file
MEDIAN_LINES = (5, 10)  # of a function, from `def` to its end


@dataclass(frozen=True)
class Module:
    """One file. path: from the tree's root, with slashes.  functions: the lines of its functions and methods.

    imports: (level, module, names) of every import statement.  arrows: the paths of the tree's files that it imports.
    """

    path: str
    lines: int
    functions: tuple[int, ...]
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    arrows: frozenset[str]

    @property
    def room(self) -> str:
        """The folder of the root that it lies in."""
        return self.path.split("/")[0]

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return self.path.rpartition("/")[0]


class Tree:
    """The Python files of the rooms below a root."""

    def __init__(self, root: Path = ROOT):
        self.root = root

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of all files, sorted."""
        rooms = [self.root / room for floor in FLOORS for room in floor]
        return tuple(sorted(path.relative_to(self.root).as_posix() for room in rooms for path in room.rglob("*.py")))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.paths)

    @cached_property
    def modules(self) -> Mapping[str, Module]:
        """Every file by its path."""
        return {path: self._module(path) for path in self.paths}

    def circles(self) -> list[list[str]]:
        """Groups of files in which one can be reached from another and the other way round, sorted."""
        reached = {path: self._reached(path) for path in self.paths}
        groups = {frozenset(other for other in reached[path] if path in reached[other]) for path in self.paths}
        return sorted(sorted(group) for group in groups if group)

    def upward(self) -> list[str]:
        """Imports of a room that does not lie below, as `from -> to`."""
        floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
        arrows = [(module, target) for module in self.modules.values() for target in sorted(module.arrows)]
        rooms = [(module.room, target.split("/")[0]) for module, target in arrows]
        return [
            f"{module.path} -> {target}"
            for (module, target), (above, below) in zip(arrows, rooms, strict=True)
            if above != below and (floor[below] >= floor[above] or (above, below) in BARRED)
        ]

    def crowded(self) -> dict[str, int]:
        """Folders with too many modules, and how many they hold."""
        counts = Counter(module.folder for module in self.modules.values())
        return {folder: count for folder, count in sorted(counts.items()) if count > MOST_MODULES}

    def long_files(self) -> dict[str, int]:
        """Files of too many lines, and how many they have."""
        return {module.path: module.lines for module in self.modules.values() if module.lines > MOST_LINES}

    def median_lines(self) -> float:
        """Lines of the median function."""
        return statistics.median(lines for module in self.modules.values() for lines in module.functions)

    def broken(self) -> list[str]:
        """A sentence for each limit that does not hold."""
        low, high = MEDIAN_LINES
        lines = [f"files that import one another: {', '.join(circle)}" for circle in self.circles()]
        lines += [f"an arrow upward: {arrow}" for arrow in self.upward()]
        lines += [f"{folder}/ has {count} modules, at most {MOST_MODULES}" for folder, count in self.crowded().items()]
        lines += [f"{path} has {count} lines, at most {MOST_LINES}" for path, count in self.long_files().items()]
        if not low <= (median := self.median_lines()) <= high:
            lines.append(f"the median function has {median:g} lines, expected {low} to {high}")
        return lines

    def report(self) -> str:
        """All figures as text, then what is broken."""
        every = self.modules.values()
        rows = {
            "modules": len(every),
            "functions": sum(len(module.functions) for module in every),
            "arrows between files": sum(len(module.arrows) for module in every),
            "circles between files": len(self.circles()),
            "arrows upward between rooms": len(self.upward()),
            f"folders with more than {MOST_MODULES} modules": len(self.crowded()),
            f"files over {MOST_LINES} lines": len(self.long_files()),
            "median lines of a function": self.median_lines(),
        }
        return "\n".join([f"{name:34}{value:>6g}" for name, value in rows.items()] + self.broken())

    def _module(self, path: str) -> Module:
        text = (self.root / path).read_text(encoding="utf-8")
        tree = ast.parse(text)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        lines = tuple(node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno)
        imports = tuple(imports_of(tree))
        return Module(path, len(text.splitlines()), lines, imports, frozenset(self._arrows(path, imports)))

    def _arrows(self, path: str, imports: tuple[tuple[int, str, tuple[str, ...]], ...]) -> Iterator[str]:
        folder = path.split("/")[:-1]
        for level, module, names in imports:
            if level:
                start = [*folder[: len(folder) - level + 1], *filter(None, module.split("."))]
                inner = [self._file([*start, name]) for name in names]
                yield from (target for target in inner if target)
                if not all(inner) and (target := self._file(start)):
                    yield target

    def _file(self, parts: list[str]) -> str | None:
        """The path of a module or package."""
        name = "/".join(parts)
        return next((path for path in (f"{name}.py", f"{name}/__init__.py") if path in self._known), None)

    def _reached(self, path: str) -> set[str]:
        """All files that `path` imports, through others too; itself if there is a way back."""
        reached: set[str] = set()
        pending = [*self.modules[path].arrows]
        while pending:
            target = pending.pop()
            if target not in reached:
                reached.add(target)
                pending += self.modules[target].arrows
        return reached


def imports_of(tree: ast.AST, within_functions: bool = True) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(level, module, names) of every import; level 0 is absolute.

    within_functions=False: of those alone that importing the file runs.
    """
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)
        elif within_functions or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types(node)):
            pending += ast.iter_child_nodes(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


if __name__ == "__main__":
    tree = Tree()
    print(tree.report())
    sys.exit(bool(tree.broken()))
