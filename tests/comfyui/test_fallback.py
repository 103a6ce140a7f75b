"""Where the larger batch fails, the run goes on one variant at a time and says so once."""

import logging

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .families import named
from .family_cases import Case
from .graphs import latent
from .host import submodule
from .reference import ROUNDING, assert_equal


@pytest.fixture
def refusing(base):
    """refusing(error): the base model, whose network raises `error` for more rows than a plain run has."""

    def make(error):
        def wrapper(executor, x, *args, **kwargs):
            if len(x) > 4:
                raise error
            return executor(x, *args, **kwargs)

        clone = base.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        return clone

    return make


@pytest.mark.parametrize("execution", ["auto", "batched"])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no memory left"), RuntimeError("The size of tensor a (2) must match tensor b (6)")],
    ids=["memory", "shape"],
)
def test_a_failing_batch_falls_back_to_one_at_a_time(graph, base, files, refusing, caplog, execution, error):
    blend, inputs = graph.blend(files), {"latent_image": latent(batch=2)}
    expected = graph.blended(base, blend, "sequential", **inputs)
    with caplog.at_level(logging.WARNING):
        result = graph.blended(refusing(error), blend, execution, **inputs)
    assert torch.equal(result, expected)
    warnings = [record.getMessage() for record in caplog.records if "one at a time" in record.getMessage()]
    assert len(warnings) == 1
    assert str(error) in warnings[0]


def test_an_error_of_a_single_pass_is_raised(graph, base, files):
    def wrapper(executor, *args, **kwargs):
        raise RuntimeError("broken")

    model = base.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    with pytest.raises(RuntimeError, match="broken"):
        graph.blended(model, graph.blend(files))


def test_auto_never_asks_for_more_than_is_free(graph, base, files, monkeypatch):
    """The more is free, the more variants go into a pass; never more than ComfyUI's own margin allows."""
    blend, inputs = graph.blend(files, alignment=1.2), {"latent_image": latent(batch=2)}
    expected = graph.blended(base, blend, "sequential", **inputs)
    rows, shape = [], [4, 8, 8]

    def counted(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = base.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counted)
    plain = 4  # conditional and unconditional of two images
    largest = []
    for room in (1.0, 2.2, 3.0, 4.0):  # in passes of that many rows
        free = 1.5 * base.model.memory_required([plain * room, *shape]) + 1
        monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device, free=free: free)
        rows.clear()
        result = graph.blended(model, blend, "auto", **inputs)
        largest.append(max(rows))
        assert all(1.5 * base.model.memory_required([n, *shape]) <= free for n in rows)
        assert_equal(result, expected, ROUNDING)
    assert largest == [4, 8, 12, 16]


@pytest.fixture
def unknown(monkeypatch):
    """No network is known to keep rows apart, or to mix them."""
    rows = submodule("nodes.host.networks.row_layout")
    monkeypatch.setattr(rows, "APART", {})
    monkeypatch.setattr(rows, "TESTED", frozenset())
    monkeypatch.setattr(rows, "_shown", {})
    return rows


@pytest.mark.parametrize("evaluation", ["exact", "stratified"])
def test_a_network_that_no_test_has_seen_shows_whether_it_mixes_rows(nodes, lora_folder, unknown, caplog, evaluation):
    """Once per process: SD 1.5's stays in batches; Cosmos 1's, whose layers get frames first, goes one at a time."""
    for name, kept in (("SD 1.5", True), ("Cosmos 1", False)):
        case = Case(named(name), nodes, lora_folder)
        inputs = {**case.inputs, "steps": 1}

        def sampled(execution, case=case, inputs=inputs):
            applied = case.graph.applied(case.model, case.blend(0.9), execution, evaluation, 4)
            return case.graph.plain(applied, **inputs)

        expected = sampled("sequential")
        with caplog.at_level(logging.WARNING):
            assert_equal(sampled("batched"), expected, ROUNDING)
        kind = type(case.model.model.diffusion_model)
        assert unknown._shown.get(kind, False) == kept
        assert (f"{kind.__name__} mixes the rows" in caplog.text or "one at a time" in caplog.text) is not kept
