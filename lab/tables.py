"""Tables of text: printed on a terminal, or as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]
"""Rows of text, the first of them the columns' names."""


def plain_table(title: str | None = None) -> Table:
    """An empty table for a terminal, its title on the left."""
    return Table(box=box.SIMPLE, title=title, title_justify="left")


def print_wide(table: Table, width: int) -> None:
    """Print it at least `width` characters wide, however narrow the terminal is."""
    Console(width=max(Console().width, width)).print(table)


def print_rows(rows: Rows, title: str | None = None) -> None:
    """Print rows, as wide as they are wherever they are printed."""
    table = plain_table(title)
    for i, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    print_wide(table, sum(max(map(len, column)) + 4 for column in zip(*rows, strict=True)))


def as_markdown(rows: Rows) -> str:
    """The rows as a Markdown table."""
    rule = ["---"] * len(rows[0])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:]))


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """The rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
