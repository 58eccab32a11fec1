"""Freed memory of the host, given back where the C library can."""

import gc
import weakref

import pytest

from landscape import devices


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_system_without_glibc_is_left_alone(monkeypatch, platform):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(devices.sys, "platform", platform)
    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    devices.trim(2**30)


def test_a_c_library_without_that_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _name: object())
    devices.trim(2**30)


class Bound:
    def __init__(self):
        self.forward = self.__init__


@pytest.mark.parametrize(("size", "is_gone"), [(2**30, True), (2**10, False)])
def test_what_holds_itself_is_collected_after_phases_of_large_vectors(size, is_gone):
    gc.disable()
    try:
        module = Bound()
        held = weakref.ref(module)
        del module
        devices.trim(size, networks=True)
        assert (held() is None) == is_gone
    finally:
        gc.enable()
