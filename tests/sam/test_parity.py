"""The published trajectories, and the runner on files that it has never seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape
from tests.parity.__main__ import DATA, main
from tests.parity.cases import variant_of
from tests.parity.problem import MODELS, Problem
from tests.parity.runner import run_file, trajectory

CASES = sorted(p.stem for p in DATA.glob("*__*.npz"))


@pytest.mark.parametrize("case", CASES)
def test_published_trajectory(case):
    outcome, detail = run_file(DATA / f"{case}.npz")
    assert outcome == "passed", detail


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_diagnosis_of_a_published_trajectory_raises_no_false_alarm(case):
    """What is told of some is true: their classes update running statistics in both passes."""
    with np.load(DATA / f"{case}.npz") as stored:
        arrays = {k: stored[k] for k in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    problem = Problem.load(DATA, "mlp")
    variant = variant_of(meta, arrays, problem)
    with landscape.record(problem.model) as seen:
        trajectory(meta, arrays, problem, variant)
    twice = case != "sgd_baseline__mlp" and "pass1" not in meta.get("bn", "pass1")
    assert {f.key for f in seen.diagnosis().wrong} == ({"statistics"} if twice else set())


def test_the_33_cases_of_the_foundation_are_all_here():
    prefixes = ("sgd_baseline", "sam_davda", "sam_samsung", "po_sam__", "asam_", "asamall_",
                "asamon_", "samon", "fsam_", "ssam_sam", "ssamf", "ssamd_", "zsharp_")  # fmt: skip
    assert sum(c.startswith(prefixes) for c in CASES) == 33


# ------------------------------- a second implementation, for the convolutional model

LR, MOMENTUM, DECAY, RHO, ALPHA, SAMPLES = 0.1, 0.9, 5e-4, 0.1, 0.8, 16


class Reference:
    """SAM, ZSharp and SSAM-F on the CNN by loops over tensors, SGD included; writes a case file."""

    def __init__(self, folder: Path) -> None:
        g = torch.Generator().manual_seed(11)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        self.x, self.y = draw(160, 3, 8, 8), torch.randint(0, 5, (160,), generator=g)
        self.model = MODELS["cnn"]().double()
        self.w = list(self.model.parameters())
        start = {}
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(0.2 * draw(*p.shape) + (1.0 if name.endswith("bn.weight") else 0.0))
                start[f"param:{name}"] = p.detach().numpy().copy()
        np.savez(folder / "problem_cnn.npz", x=self.x.numpy(), y=self.y.numpy(), **start)
        self.folder, self.start = folder, [p.detach().clone() for p in self.w]

    def gradient(self, rows):
        loss = torch.nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows])
        return loss.item(), [g.clone() for g in torch.autograd.grad(loss, self.w)]

    def flat(self, tensors):
        return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy().copy()

    def write(self, case, perturb, after, hp):
        for p, s in zip(self.w, self.start, strict=True):
            p.data.copy_(s)
        velocity = [torch.zeros_like(p) for p in self.w]
        self.mask = [torch.zeros_like(p) for p in self.w]
        weights, rows = [self.flat(self.w)], {k: [] for k in ("l1", "l2", "e", "used", "after")}
        for t in range(20):
            batch = slice(32 * (t % 5), 32 * (t % 5) + 32)
            l1, g1 = self.gradient(batch)
            used = self.flat(self.mask)
            e = perturb(g1)
            old = [p.detach().clone() for p in self.w]
            for p, x in zip(self.w, e, strict=True):
                p.data.add_(x)
            l2, g2 = self.gradient(batch)
            for p, s, v, g in zip(self.w, old, velocity, g2, strict=True):
                v.mul_(MOMENTUM).add_(g + DECAY * s)
                p.data.copy_(s - LR * v)
            after(t, g2)
            weights.append(self.flat(self.w))
            for key, value in zip(rows, (l1, l2, self.flat(e), used, self.flat(self.mask)),
                                  strict=True):  # fmt: skip
                rows[key].append(value)
        basis = np.random.RandomState(7).randn(len(weights[0]), 32) / np.sqrt(len(weights[0]))
        arrays = {
            "W_1_2_5_20": np.stack([weights[i] for i in (1, 2, 5, 20)]),
            "PROJ": np.stack(weights) @ basis,
            "LOSS1": np.array(rows["l1"]),
            "LOSS2": np.array(rows["l2"]),
            "ENORM": np.linalg.norm(np.stack(rows["e"]), axis=1),
            "E_0": rows["e"][0],
        }
        if case == "ssamf":
            arrays["MASK_USED_BITS"] = np.packbits(np.stack(rows["used"]) > 0, axis=1)
            arrays["MASK_AFTER_BITS"] = np.packbits(np.stack(rows["after"]) > 0, axis=1)
        hp = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "rho": RHO} | hp
        meta = {"case": case, "model": "cnn", "base": "SGD", "hp": hp, "bn": "both passes"}
        np.savez(self.folder / f"{case}__cnn.npz", meta=json.dumps(meta), **arrays)

    def sam(self, g):
        norm = torch.cat([x.reshape(-1) for x in g]).norm() + 1e-12
        return [RHO * x / norm for x in g]

    def zsharp(self, g):
        total = torch.cat([x.reshape(-1) for x in g]).norm() + 1e-12
        e = []
        for x in g:
            z = ((x - x.mean()) / (x.std() + 1e-12)).abs()
            f = x * (z > torch.quantile(z, ALPHA))
            e.append(RHO * f / (f.norm() + 1e-12) if x.ndim > 1 else RHO * x / total)
        return e

    def masked(self, g):
        norm = torch.cat([x.reshape(-1) for x in g]).norm() + 1e-7
        return [m * RHO * x / norm for m, x in zip(self.mask, g, strict=True)]

    def refresh(self, t, g2):
        """Train mode throughout, and the first example's gradient added to the batch's."""
        if t % 5:
            return
        fisher = [torch.zeros_like(p) for p in self.w]
        for i in range(SAMPLES):
            _, g = self.gradient(slice(i, i + 1))
            for f, x, left in zip(fisher, g, g2, strict=True):
                f += (x + left if i == 0 else x).square()
        flat = torch.cat([f.reshape(-1) for f in fisher])
        keep = torch.zeros_like(flat)
        keep[torch.topk(flat, int(len(flat) * 0.5)).indices] = 1
        parts = keep.split([p.numel() for p in self.w])
        self.mask = [k.view(p.shape) for k, p in zip(parts, self.w, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cnn")
    reference = Reference(path)
    nothing = lambda t, g2: None  # noqa: E731
    reference.write("sam_davda", reference.sam, nothing, {})
    reference.write("zsharp_sgd_a0.8", reference.zsharp, nothing, {"alpha": ALPHA})
    fisher = {"sparsity": 0.5, "update_freq": 1, "num_samples": SAMPLES}
    reference.write("ssamf", reference.masked, reference.refresh, fisher)
    return path


def test_the_runner_takes_files_of_the_convolutional_model(folder, capsys):
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 passed, 0 failed, 0 skipped"
    assert len(lines) == 4
    assert "MASK_USED_BITS 0 MASK_AFTER_BITS 0" in lines[1]


def test_a_wrong_trajectory_fails_and_an_unknown_case_must_be_allowed_by_name(folder, capsys):
    with np.load(folder / "sam_davda__cnn.npz") as stored:
        arrays = {k: stored[k] for k in stored.files}
    meta = json.loads(str(arrays["meta"]))

    def write(case, **changed):
        np.savez(folder / f"{case}__cnn.npz",
                 **(arrays | {"meta": json.dumps(meta | {"case": case})} | changed))  # fmt: skip

    write("mystery")
    try:
        assert main([str(folder)]) == 1
        assert "3 passed, 0 failed, 1 skipped" in capsys.readouterr().out
        assert main([str(folder), "--allow-skip", "mystery"]) == 0
        capsys.readouterr()
        off = arrays["PROJ"].copy()
        off[3, 5] += 1e-9
        write("sam_davda_off", PROJ=off)
        assert main([str(folder), "--allow-skip", "mystery"]) == 1
        out = capsys.readouterr().out
        assert "PROJ beyond 1e-10" in out
        assert out.splitlines()[-1] == "3 passed, 1 failed, 1 skipped"
    finally:
        (folder / "mystery__cnn.npz").unlink()
        (folder / "sam_davda_off__cnn.npz").unlink(missing_ok=True)


def test_an_empty_folder_is_not_a_success(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no <case>__<model>.npz" in capsys.readouterr().err
