from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# How long an example takes says something of the machine alone.
settings.register_profile("pyratok", deadline=None)
settings.load_profile("pyratok")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
