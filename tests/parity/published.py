"""python -m tests.parity.published CLONE...: published classes, recorded, unchanged, from clones.

Clones of davda54/sam, nblt/F-SAM, YUNBLAK/ZSharp, mueller-mp/SAM-ON. Each class takes the 20 steps
of its stored trajectory inside `landscape.record`, which must see their ‖e‖ to 1e-10.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import landscape
from benchmarks.sam_peers import class_in
from landscape import snapshots
from tests.parity.problem import Problem

DATA = Path(__file__).parent / "data"
CASES = {  # file of the clone: class, text that it holds, trajectories
    "sam.py": ("SAM", "old_p", ("sam_davda", "asam_davda")),
    "utils.py": ("FriendlySAM", "lmbda", ("fsam_s1_l0.6", "fsam_s1_l0.9", "fsam_s0.5_l0.9")),
    "main.py": ("SAM", "zsam_alpha", ("zsharp_sgd_a0.5", "zsharp_sgd_a0.95", "zsharp_adam_a0.8")),
    "sam_on.py": ("SAM_ON", "", ("samon", "samon_nonorm", "samon_all")),
}


def optimizer_of(file: Path, model: torch.nn.Module, meta: dict) -> object:
    """The class as published, with the options of the trajectory."""
    name, contains, _ = CASES[file.name]
    hp, base = dict(meta["hp"]), getattr(torch.optim, meta["base"])
    inner = {k: hp.pop(k) for k in ("lr", "momentum", "betas", "weight_decay") if k in hp}
    if file.name == "sam_on.py":
        spec = importlib.util.spec_from_file_location("published_sam_on", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)(base(model.parameters(), **inner), model, **hp)
    if file.name == "main.py":
        hp["hparams"] = SimpleNamespace(zsam=True, alpha=hp.pop("alpha"))
    with contextlib.redirect_stdout(io.StringIO()):
        return class_in(file, name, contains)(model.parameters(), base, **hp, **inner)


def worst_difference(file: Path, case: str) -> float:
    """Largest |‖e‖ recorded - ‖e‖ stored| of the 20 steps; NaN if one was not seen."""
    with np.load(DATA / f"{case}__mlp.npz") as stored:
        meta, reference = json.loads(str(stored["meta"])), stored["ENORM"]
    problem = Problem.load(DATA, "mlp")
    optimizer = optimizer_of(file, problem.model, meta)
    climb = getattr(optimizer, "first_step", None) or optimizer.ascent_step
    descend = getattr(optimizer, "second_step", None) or optimizer.descent_step
    with (
        tempfile.TemporaryDirectory() as folder,
        landscape.record(problem.model, folder=folder, steps_per_epoch=5, every=1),
    ):
        for _, (x, y) in problem.batches():
            for move in (climb, descend):
                F.cross_entropy(problem.model(x), y).backward()
                move()
                problem.model.zero_grad()
        seen = snapshots.read_steps(folder)["perturbation_norm"]
    return float(np.abs(seen - reference).max()) if len(seen) == len(reference) else float("nan")


def main() -> int:
    """One line a class and trajectory; 1 where one is not seen to 1e-10."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.published", description=__doc__)
    parser.add_argument("clones", nargs="+", type=Path, metavar="CLONE")
    missed = 0
    for clone in parser.parse_args().clones:
        files = [clone / name for name in CASES if (clone / name).exists()]
        if not files:
            print(f"{clone} holds none of {', '.join(CASES)}", file=sys.stderr)
            return 1
        for file in files:
            name, contains, cases = CASES[file.name]
            if contains and contains not in file.read_text(encoding="utf-8"):
                continue
            for case in cases:
                worst = worst_difference(file, case)
                missed += not worst <= 1e-10
                print(f"{clone.name:16}{file.name:12}{name:14}{case:20}{worst:.1e}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
