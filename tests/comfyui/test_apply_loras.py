"""Apply Reward LoRAs is Load Reward LoRA, Blend Weights, KL Interpolate and Apply Blend in one node."""

import hashlib
import os
from pathlib import Path

import folder_paths
import pytest
import torch

from . import host
from .reference import assert_equal

BlendError = host.submodule("blend_core").BlendError


def rows(files, weights, on=None):
    """The rows as the editor hands them over."""
    entries = {}
    for i, (file, weight) in enumerate(zip(files, weights, strict=True), start=1):
        entries |= {f"lora_{i}": file, f"on_{i}": on is None or on[i - 1], f"weight_{i}": weight}
    return entries


@pytest.fixture
def apply(nodes):
    """apply(model, rows, strength, evaluation): (model, blend, loras)."""

    def run(model, loras, strength=1.0, evaluation="exact"):
        return nodes["ApplyRewardLoRAs"].execute(model, strength, evaluation, **loras).result

    return run


@pytest.mark.parametrize("evaluation", ["exact", "merged"])
def test_it_is_the_four_nodes_in_one(graph, base, files, apply, evaluation):
    model, blend, _ = apply(base, rows(files, (3.0, 1.0, 0.0)), 1.3, evaluation)
    expected = graph.blend(files, "3, 1, 0", alignment=1.3)
    assert_equal(graph.plain(model), graph.plain(graph.applied(base, expected, evaluation=evaluation)))
    assert [b.preference for b in blend.schedule.blends] == [b.preference for b in expected.schedule.blends]


def test_a_row_that_is_off_is_left_out_with_its_weight(graph, base, files, apply):
    model, *_ = apply(base, rows(files, (1.0, 5.0, 1.0), on=(True, False, True)))
    expected = graph.blend([files[0], files[2]], "0.5, 0.5")
    assert torch.equal(graph.plain(model), graph.plain(graph.applied(base, expected, "auto")))
    with pytest.raises(BlendError, match="no row has a file and is on"):
        apply(base, rows([files[0], "none"], (1.0, 1.0), on=(False, True)))


def test_the_text_names_files_coefficients_and_hashes(base, files, apply):
    text = apply(base, rows(files[:2], (0.6, 0.4)), 0.5)[2]
    adapters = [basis.adapter for basis in apply(base, rows(files[:2], (0.6, 0.4)), 0.5)[1].bases]
    first, second = (adapter.label for adapter in adapters)
    line, hashes = text.splitlines()
    assert line == f"<lora:{first}:0.3> <lora:{second}:0.2>"
    digests = [hashlib.sha256(Path(adapter.path).read_bytes()).hexdigest()[:10] for adapter in adapters]
    assert hashes == f'Lora hashes: "{first}: {digests[0]}, {second}: {digests[1]}"'


def test_another_file_under_the_name_is_noticed(nodes, files):
    node, loras = nodes["ApplyRewardLoRAs"], rows(files[:2], (1.0, 1.0), on=(True, False))
    paths = [Path(folder_paths.get_full_path("loras", file)) for file in files[:2]]
    before = node.fingerprint_inputs(**loras)
    for path, seen in ((paths[1], False), (paths[0], True)):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert (node.fingerprint_inputs(**loras) != before) == seen
