"""How the tests themselves load the pack: as ComfyUI does, and in no other way."""

import sys
from pathlib import Path

from . import host


def test_the_pack_is_one_module_under_the_name_that_comfyui_gives_it(nodes):
    root = str(host.REPOSITORY / "__init__.py")
    assert [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == root] == [host.PACK]
    assert all(node.__module__.startswith(f"{host.PACK}.nodes.") for node in nodes.values())
    assert host.REPOSITORY not in [Path(entry or ".").resolve() for entry in sys.path]


def test_comfyuis_own_nodes_module_is_not_shadowed():
    assert Path(sys.modules["nodes"].__file__).parent == host.workspaces()[0]
