"""What only hardware can show: skipped where there is none, and rehearsed where it can be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk
from tests.measure_problems import cnn, images

CE, ROOT = nn.CrossEntropyLoss(), Path(__file__).parents[2]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.mark.gpu
@cuda
def test_products_are_float32_where_tf32_is_allowed():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    single = EmpiricalRisk(cnn(), CE, images(64), device="cuda", dtype=torch.float32)
    double = EmpiricalRisk(cnn(), CE, images(64), device="cuda", dtype=torch.float64)
    v = torch.randn(single.theta.numel(), generator=torch.Generator().manual_seed(0))
    found = single.hvp(single.theta, v.to(single.theta)).double()
    truth = double.hvp(double.theta, v.to(double.theta))
    assert (found - truth).norm() < 1e-5 * truth.norm()  # TF32 keeps 10 bits: 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds no second CUDA device")
def test_a_second_device_has_the_numbers_of_the_first():
    first, second = (EmpiricalRisk(cnn(), CE, images(), device=d) for d in ("cuda:0", "cuda:1"))
    torch.testing.assert_close(
        second.gradient(second.theta).cpu(), first.gradient(first.theta).cpu(), rtol=0, atol=0
    )


@pytest.mark.slow
def test_the_tables_are_rehearsed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", "--out", tmp_path]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "accelerator-rehearsal.json").read_text())
    for network in table["networks"].values():
        assert all(row["n"] >= 3 and row["ms"] > 0 for row in network["rows"].values())


def test_without_a_device_the_script_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 2
    assert "--rehearse" in done.stderr
