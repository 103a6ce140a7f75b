"""LoRA files read, whatever tool wrote them, and matched to the weights of a host network.

    adapter = read_adapter(path)                # what the file holds: files/, names/, kinds, scale, changes, reading
    changes, report = resolve(adapter, index)   # where it goes: names/, resolving, report

`index` is built once per host from the names that host knows its weights by. Nothing here imports a host.
"""

from .adapter import Adapter, plain
from .changes import Change, Delta, Factors, Magnitude
from .experts import AS_CHOSEN, EXPERTS, mixed_experts, partner
from .files import adapter_files, is_adapter_file
from .names.spelling import canonical
from .names.target import Target
from .names.targets import TargetIndex
from .reading import read_adapter
from .report import LoadReport
from .resolving import resolve

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
]
