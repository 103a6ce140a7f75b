"""Weight files found (places), opened (opening) and read (containers), whatever they are named and however saved."""

from .containers import WeightFile
from .opening import open_weights, sha256
from .places import (
    adapter_files,
    is_adapter_file,
    label_of,
    says_nothing,
    shards_of,
    weight_files_in,
    without_references,
)

__all__ = [
    "WeightFile",
    "adapter_files",
    "is_adapter_file",
    "label_of",
    "open_weights",
    "says_nothing",
    "sha256",
    "shards_of",
    "weight_files_in",
    "without_references",
]
