"""`landscape measure` under torchrun: the weights cut over its processes, one folder written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import EmpiricalRisk
from landscape.sharding import is_cut
from landscape.study import together
from tests.sharding.models import CE, data, made
from tests.two_processes import in_two_processes, needs_processes

MINE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

def data():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(12, 6, generator=source, dtype=torch.float64)
    return x, torch.randint(3, (12,), generator=source)
"""


def cut(_rank):
    from torch.distributed.device_mesh import init_device_mesh

    model, cpu = made("language"), torch.device("cpu")
    assert together.cut(model, cpu) is model
    together._mesh = init_device_mesh("cpu", (2,))
    parts = together.cut(model, cpu)
    assert not any(map(is_cut, model.parameters()))
    assert all(map(is_cut, parts.parameters()))
    assert parts.head.weight is parts.embed.weight
    risk = EmpiricalRisk(parts, CE, data("language", torch.float64))
    alone = EmpiricalRisk(model, CE, data("language", torch.float64))
    assert torch.equal(risk.gradient(risk.theta).whole(), alone.gradient(alone.theta))


@pytest.mark.thorough
@needs_processes
def test_a_model_is_cut_along_the_first_axis_of_its_weights():
    in_two_processes(cut)


@pytest.mark.slow
@needs_processes
def test_torchrun_measures_what_one_process_does(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    save = "import mine, torch; torch.save(mine.make().state_dict(), 'a.pt')"
    measure = [
        "-m", "landscape", "measure", "--model", "mine:make", "--data", "mine:data",
        "--weights", "a.pt", "--dtype", "float64",
    ]  # fmt: skip
    for command in (
        ["-c", save],
        [*measure, "--out", "one", "--workers", "0"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *measure,
         "--out", "two"],
    ):  # fmt: skip
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.glob("landscape-*"))
    for name in ("top_eigenvalues", "hessian_trace", "sharpness", "mask_overlap"):
        (first,), (second,) = (
            list((tmp_path / folder / "runs").glob(f"*/results/{name}.nc"))
            for folder in ("one", "two")
        )
        alone, both = xr.open_dataset(first), xr.open_dataset(second)
        main = {"top_eigenvalues": "eigenvalue", "hessian_trace": "trace", "sharpness": "one_step",
                "mask_overlap": "jaccard"}[name]  # fmt: skip
        np.testing.assert_allclose(both[main], alone[main], rtol=1e-6)
