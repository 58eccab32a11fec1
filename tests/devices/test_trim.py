"""Freed memory of the host, given back where the C library can."""

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
