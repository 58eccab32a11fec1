"""A device that is not the CPU for every test: CUDA where there is one, else the pretend device."""

import pytest
import torch

from tests.devices import pretend  # before any backward pass: autograd counts its devices once


@pytest.fixture
def accelerator() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else pretend.DEVICE)


@pytest.fixture
def no_waiting(accelerator):
    """A context in which the host may not wait for the device."""
    module = torch.get_device_module(accelerator.type)

    class NoWaiting:
        def __enter__(self):
            module.set_sync_debug_mode("error")

        def __exit__(self, *_):
            module.set_sync_debug_mode("default")

    return NoWaiting()


def pytest_collection_modifyitems(items) -> None:
    """What uses an accelerator says so: `-m accelerator` is for a machine that has one."""
    for item in items:
        if "accelerator" in getattr(item, "fixturenames", ()):
            item.add_marker("accelerator")
