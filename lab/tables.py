"""Tables of text on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_rows(rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Rows of text, the first of them the columns' names, as wide as they are wherever they are printed."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for i, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    width = sum(max(map(len, column)) + 4 for column in zip(*rows, strict=True))
    Console(width=max(Console().width, width)).print(table)
