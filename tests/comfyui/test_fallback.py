"""Where the larger batch fails, the run goes on one variant at a time and says so once."""

import logging

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from .graphs import latent


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
