"""LoRA files read, whatever tool wrote them, and matched to the weights of a host network.

    adapter = read_adapter(path)                # what the file holds: files, spelling, kinds, scale, changes, reading
    changes, report = resolve(adapter, index)   # where it goes: targets, architectures, renames, resolving, report

`index` is built once per host from the names that host knows its weights by. Nothing here imports a host.
"""

from .changes import Change, Delta, Magnitude
from .experts import AS_CHOSEN, EXPERTS, mixed_experts, partner
from .factors import Adapter, Factors, plain, soup
from .files import adapter_files, is_adapter_file
from .reading import read_adapter
from .report import LoadReport
from .resolving import resolve
from .spelling import canonical
from .target import Target
from .targets import TargetIndex

__all__ = [
    "AS_CHOSEN",
    "EXPERTS",
    "Adapter",
    "Change",
    "Delta",
    "Factors",
    "LoadReport",
    "Magnitude",
    "Target",
    "TargetIndex",
    "adapter_files",
    "canonical",
    "is_adapter_file",
    "mixed_experts",
    "partner",
    "plain",
    "read_adapter",
    "resolve",
    "soup",
]
