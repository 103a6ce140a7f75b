"""How the tests themselves load the pack: as ComfyUI does, and in no other way."""

import sys
from pathlib import Path

from . import host


def test_the_pack_is_loaded_once_under_the_name_that_comfyui_gives_it(nodes):
    folders = [host.REPOSITORY / name for name in ("nodes", "blend_core")]
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    ours = [name for name, file in files.items() if file and any(f in Path(file).parents for f in folders)]
    assert ours
    assert all(name.startswith(f"{host.PACK}.") for name in ours)
    assert host.REPOSITORY not in [Path(entry or ".").resolve() for entry in sys.path]


def test_comfyuis_own_nodes_module_is_not_shadowed():
    assert Path(sys.modules["nodes"].__file__).parent == host.workspaces()[0]
