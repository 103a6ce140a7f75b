"""The file of everything measured so far, and the page that is made from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import report

FORMAT = 3


@dataclass
class Figures:
    """sections: the costs, by network, size, dtype and machine.  launches: what was counted, by network.

    Another network, size, dtype or machine stays where it is, so that long runs may be made in parts.
    """

    out: Path
    page: Path
    sections: dict[str, dict]
    launches: dict[str, dict]

    @classmethod
    def of(cls, out: Path, page: Path) -> Figures:
        """Those in the file `out`; none where it has another format or is not there."""
        kept = json.loads(out.read_text()) if out.is_file() else {}
        known = kept if kept.get("format") == FORMAT else {}
        return cls(out, page, known.get("sections", {}), known.get("launches", {}))

    def add_section(self, section: dict) -> None:
        """Keep a section of costs, in the place of one of the same network, size, dtype and machine."""
        size = section["settings"]["size"]
        self.sections[f"{section['network']}, {size}, {section['dtype']}, {section['machine']}"] = section
        self._write(costs=True)

    def add_launches(self, network: str, counted: dict) -> None:
        """Keep what was counted of a network."""
        self.launches[network] = counted
        self._write(launches=True)

    def add_file(self, file: Path) -> None:
        """Keep what another run, on another machine maybe, left in its file."""
        other = Figures.of(file, self.page)
        self.sections |= other.sections
        self.launches |= other.launches
        self._write(bool(other.sections), bool(other.launches))

    def _write(self, costs: bool = False, launches: bool = False) -> None:
        """The file, and those parts of the page; the other part stays as it is."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        kept = {"format": FORMAT, "sections": self.sections, "launches": self.launches}
        self.out.write_text(json.dumps(kept, indent=1))
        written = self.page.read_text("utf8") if self.page.is_file() else ""
        first, title, last = written.partition(report.LAUNCHES_TITLE)
        if costs:
            first = report.costs_page(self.sections.values())
        if launches:
            title, last = "", report.launches_page(self.launches)
        self.page.write_text(first + title + last, "utf8")
