"""LoRA files read into low-rank factors, whatever tool wrote them, and matched to the weights of a host network.

    adapter = read_adapter(path)                    # what the file holds: files, spelling, scale, reading
    factors, report = resolve(adapter, index)       # where it goes: targets, renames, resolving, report

`index` is built once per host from the names that host knows its weights by. Nothing here imports a host.
"""

from .factors import Adapter, Factors, soup
from .files import adapter_files, is_adapter_file
from .reading import read_adapter
from .report import LoadReport
from .resolving import resolve
from .spelling import canonical
from .targets import Target, TargetIndex

__all__ = [
    "Adapter",
    "Factors",
    "LoadReport",
    "Target",
    "TargetIndex",
    "adapter_files",
    "canonical",
    "is_adapter_file",
    "read_adapter",
    "resolve",
    "soup",
]
