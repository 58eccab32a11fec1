"""Whole grids against fresh models set by hand, and grids that outlive a killed process."""

import copy
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import EmpiricalRisk, measure, plane, problems, results
from landscape.risk.along.folded import Folded
from tests.measure_problems import cnn_risk, fingerprint, same

MODES = ("eval", "recalibrate", "full_batch")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def mlp_with_batchnorm():
    layers = [nn.Flatten(), nn.Linear(48, 12), nn.BatchNorm1d(12), nn.ReLU()]
    layers += [nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 5)]
    return nn.Sequential(*layers)


def network(name, dtype):
    """A network with running statistics that are not those of the start, and its data."""
    size = 8 if name == "vit" else 4
    source = torch.Generator().manual_seed(4)
    x = torch.randn(12, 3, size, size, generator=source, dtype=dtype)
    y = torch.randint(5, (12,), generator=source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mlp":
            model = mlp_with_batchnorm()
        else:
            model = problems.make_model(name, num_classes=5, input_shape=x.shape[1:], seed=0)
        model = model.to(dtype).train()
        model(torch.randn(x.shape, generator=source, dtype=dtype) * 1.5 + 0.2)
    return model.eval(), x, y


def by_hand(model, values, x, y, bn):
    """Mean loss of a fresh copy with these parameters, in an ordinary forward pass."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
        for module in model.modules():
            if not isinstance(module, _BatchNorm):
                continue
            if bn == "full_batch":
                module.train()
            elif bn == "recalibrate":
                module.register_forward_pre_hook(estimated)
        return float(nn.functional.cross_entropy(model(x), y))


def estimated(module, args):
    """Running statistics of what the layer reads, before it reads it."""
    axes = [0, *range(2, args[0].ndim)]
    module.running_mean.copy_(args[0].mean(axes))
    module.running_var.copy_(args[0].var(axes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "bn"),
    [
        *(("mlp", bn) for bn in MODES),
        *(pytest.param("vit", bn, marks=pytest.mark.slow) for bn in MODES),
        *(pytest.param("resnet20", bn, marks=pytest.mark.slow) for bn in MODES),
    ],
)
def test_every_cell_of_a_whole_grid_is_a_fresh_models_loss(name, bn, dtype):
    model, x, y = network(name, dtype)
    before = fingerprint(model)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype)
    axes = plane.random(risk, risk.theta, num_directions=2, seed=0)
    points = 9
    ds = measure.loss_plane(
        risk, risk.theta, directions=axes, radius=0.5, points=points, bn=bn, seed=0
    )
    direct = bn != "eval" and risk.has_batchnorm
    assert (results.provenance(ds)["evaluation"] == "direct") == direct
    steps = [list(risk.layout.unflatten(d).values()) for d in axes.directions]
    for i, j in np.ndindex(points, points):
        a, b = float(ds.alpha[i]), float(ds.beta[j])
        values = [
            p.detach() + a * u + b * v for p, u, v in zip(model.parameters(), *steps, strict=True)
        ]
        truth = by_hand(model, values, x, y, bn)
        assert float(ds.loss[i, j]) == pytest.approx(truth, rel=TOLERANCE[dtype])
    same(before, fingerprint(model))


def test_tensors_kept_for_the_first_layer_stay_within_the_memory_allowed():
    risk, model = cnn_risk()
    small = EmpiricalRisk(model, nn.CrossEntropyLoss(), data(), dtype=torch.float64, memory=10_000)
    axes = plane.random(risk, risk.theta, num_directions=2, seed=0)
    assert "first layer combined" in Folded.of(risk, axes, [(0.0, 0.0)]).method
    assert "first layer combined" not in Folded.of(small, axes, [(0.0, 0.0)]).method


def data():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 8, 8, generator=source, dtype=torch.float64)
    return x, torch.randint(4, (24,), generator=source)


KILLED = """
import signal, sys, torch
from pathlib import Path
from landscape import measure
# A shell's background jobs begin with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.measure_problems import cnn_risk
risk, _ = cnn_risk(n=24)
folder = Path(sys.argv[1])
if sys.argv[2] == "plane":
    measure.loss_plane(risk, risk.theta, points=21, radius=0.5, tiles=folder, seed=0)
else:
    measure.loss_slice(risk, risk.theta, points=101, num_directions=8, tiles=folder, seed=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plane", "slice"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_process_killed_mid_grid_loses_no_finished_tile(tmp_path, what, how):
    folder = tmp_path / "tiles"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), what],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while process.poll() is None and len(list(folder.glob("tile-*.npz"))) < 2:
        time.sleep(0.005)
    process.send_signal(how)
    error = process.communicate()[1].decode()
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in error) == (how == signal.SIGINT)
    finished = len(list(folder.glob("tile-*.npz")))
    risk, _ = cnn_risk(n=24)
    call = {"radius": 0.5, "points": 21} if what == "plane" else {"points": 101}
    run = measure.loss_plane if what == "plane" else measure.loss_slice
    resumed = run(risk, risk.theta, tiles=folder, seed=0, **call)
    whole = run(risk, risk.theta, seed=0, **call)
    for name in whole.data_vars:
        assert whole[name].values.tobytes() == resumed[name].values.tobytes(), name
    assert 2 <= results.provenance(resumed)["tiles_resumed"] == finished
