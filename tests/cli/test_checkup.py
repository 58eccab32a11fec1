"""`landscape check`: an installation that works says so, one that does not names what fails."""

import json
import subprocess
import sys

import pytest

import landscape
from landscape.cli import checkup
from tests.cli.test_commands import call


@pytest.mark.thorough
def test_this_installation_holds(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "check", "--json")
    found = json.loads(out)
    assert [finding["name"] for finding in found] == list(checkup.CHECKS)
    assert all(finding["holds"] for finding in found), found
    assert code == 0


def test_the_version_is_said_by_the_module_too():
    asked = [sys.executable, "-m", "landscape", "--version"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert said.stdout == f"landscape {landscape.__version__}\n"


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_what_fails_is_named_and_the_others_are_made(fault, monkeypatch, capsys):
    def broken():
        if fault == "raises":
            raise OSError("no space\nleft")
        return False, "λ₁ = 2, dense Hessian 1"

    kept = {"devices": checkup.CHECKS["devices"], "step": checkup.CHECKS["step"]}
    monkeypatch.setattr(checkup, "CHECKS", {"curvature": broken, **kept})
    code, out, _ = call(monkeypatch, capsys, "check")
    first, *others = out.splitlines()
    assert first.startswith("FAILED  curvature")
    assert "OSError: no space left" in first or "dense Hessian 1" in first
    assert [line[:2] for line in others] == ["ok", "ok"]
    assert code == 1
