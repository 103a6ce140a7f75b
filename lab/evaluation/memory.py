"""The most memory that a pass takes."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


class Peak:
    """From its making on: of a GPU what torch allocated, of a CPU on Linux the process's resident memory.

    The latter counts whatever earlier passes left to the process. Elsewhere it is unknown.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self.known = self._reset()

    def bytes(self) -> int | None:
        """The peak so far; None where it is unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        line = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text()) if self.known else None
        return 1024 * int(line[1]) if line else None

    def _reset(self) -> bool:
        try:
            (PROCESS / "clear_refs").write_text("5")  # man 5 proc: resets VmHWM
        except OSError:
            return False
        return True
