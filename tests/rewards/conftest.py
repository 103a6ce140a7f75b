"""Rewards on tiny networks: real files on disk, read by the real loading code, only narrower."""

import pytest
import torch

from . import worlds


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The files of all learned rewards; whoever loads from it also needs `small`."""
    with pytest.MonkeyPatch.context() as patch:
        worlds.shrink(patch)
        return worlds.write_library(tmp_path_factory.mktemp("reward_models"))


@pytest.fixture
def small(monkeypatch):
    """Learned rewards are tiny."""
    worlds.shrink(monkeypatch)


@pytest.fixture
def images():
    """Three images of 40 x 36 pixels, away from 0 and 1, where a clamp would hide gradients."""
    return 0.1 + 0.8 * torch.rand(3, 3, 40, 36, generator=torch.Generator().manual_seed(3))
