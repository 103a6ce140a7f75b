"""The trainers' tests: one thread, because two of them under load are many times slower than one."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
