"""Fixtures for tests inside a real ComfyUI; without one, this folder is skipped. Start it with run.py."""

import json
import os
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest

from . import coverage, host

OBSTACLE = host.obstacle()

if OBSTACLE is None:
    host.enter(host.workspaces()[0])

    import comfy.model_management
    import comfy.utils
    import folder_paths
    import torch

    from . import loras, networks, reference, spellings
    from .every_family import EVERY
    from .families import named
    from .family_cases import Case
    from .graphs import Graph
    from .kind_cases import Case as KindCase

    comfy.utils.set_progress_bar_enabled(False)


class _NotImported(pytest.Module):
    """A test module that is skipped unread, since it imports comfy."""

    def collect(self):
        pytest.skip(OBSTACLE)


def pytest_pycollect_makemodule(module_path, parent):
    """Skip every module of this folder where there is no ComfyUI."""
    return _NotImported.from_parent(parent, path=module_path) if OBSTACLE else None


_passed: Counter = Counter()  # of the tests that have a family, by family and name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Count the tests of a family that passed, for docs/models.md."""
    report = yield
    family = item.callspec.params.get("family") if hasattr(item, "callspec") else None
    if family is not None and report.when == "call" and report.passed:
        _passed[family.name, item.originalname] += 1
    return report


_errors: list[float] = []  # of this process and of the workers of pytest-xdist that have ended


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take a worker's relative errors, and what passed there."""
    output = getattr(node, "workeroutput", {})
    _errors.extend(output.get("errors", ()))
    for family, name, count in output.get("passed", ()):
        _passed[family, name] += count


def pytest_terminal_summary(terminalreporter):
    """Print the largest."""
    if _errors:
        largest = ", ".join(f"{error:.1e}" for error in sorted(_errors, reverse=True)[:3])
        rounding = f"{host.DTYPE} on {host.DEVICE}, {reference.ROUNDING:g} is allowed"
        terminalreporter.write_line(f"largest relative errors of {len(_errors)} comparisons: {largest} ({rounding})")


def pytest_sessionfinish(session):
    """Write the outcomes where run.py --write-table asks for them."""
    if OBSTACLE is None:
        output = getattr(session.config, "workeroutput", {})
        output["errors"], output["passed"] = reference.errors, [[*key, count] for key, count in _passed.items()]
        _errors.extend(reference.errors)
    if coverage.REPORT in os.environ and OBSTACLE is None and not hasattr(session.config, "workeroutput"):
        rows = {
            family.name: {
                "cell": coverage.cell(
                    _passed[family.name, "test_a_blend_equals_merged_copies"],
                    spellings.count(family) * _passed[family.name, "test_every_key_of_every_spelling_finds_its_weight"],
                ),
                "note": family.sequential,
            }
            for family in EVERY
            if not family.missing
        }
        Path(os.environ[coverage.REPORT]).write_text(json.dumps(rows))


@pytest.fixture(autouse=True)
def as_comfyui_executes():
    """ComfyUI runs every node under inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def nodes():
    """The pack's node classes by name."""
    return host.load_nodes()


@pytest.fixture(scope="session")
def graph(nodes):
    """Graphs of the pack's nodes with SD 1.5 prompts."""
    return Graph(nodes, networks.conditioning(21), networks.conditioning(22))


@pytest.fixture(scope="session")
def base():
    """The base model. No test may leave a trace on it; test_no_trace asserts that the nodes leave none."""
    model = networks.sd15()
    if host.DEVICE != "cpu":  # the first run of a process takes other products than those after it, without us too
        with torch.inference_mode():
            Graph({}, networks.conditioning(21), networks.conditioning(22)).plain(model)
    return model


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory):
    """A folder that ComfyUI's loaders look into."""
    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder))
    return folder


@pytest.fixture(scope="session")
def cases(nodes, lora_folder):
    """cases(name): a family made ready, once; "inpainting": an SDXL that also gets a mask and a masked image."""
    made = {}

    def make(name):
        if name not in made:
            family = named("SDXL" if name == "inpainting" else name)
            if name == "inpainting":
                load = partial(family.load.func, *family.load.args, **family.load.keywords | {"in_channels": 9})
                family = replace(family, kind="SDXL_inpaint", load=load)
            made[name] = Case(family, nodes, lora_folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def kind_case(nodes, lora_folder):
    """kind_case(family, kind): a family with a file of that kind made ready, once."""
    return cache(lambda name, kind: KindCase(name, kind, nodes, lora_folder))


@pytest.fixture(scope="session")
def reward_loras(base, lora_folder):
    """Three LoRAs of different rank, coverage, alpha and spelling. Returns (LoRA, file name) pairs."""
    return loras.write_three(base.model, lora_folder)


@pytest.fixture(scope="session")
def files(reward_loras):
    """The three LoRAs' names, as Load Reward LoRA lists them."""
    return [file for _, file in reward_loras]


@pytest.fixture(scope="session")
def merged(base, reward_loras):
    """The base model and three copies, each with one LoRA merged: what coefficients multiply, base first."""
    return [base.model, *(lora.merge_into(networks.sd15().model) for lora, _ in reward_loras)]


@pytest.fixture(scope="session")
def plain(graph, base):
    """The picture of the base model, made before any blend."""
    with torch.inference_mode():
        return graph.plain(base)
