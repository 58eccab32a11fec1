"""Which radius should each variant of the demo have? The one with the best *validation* accuracy.

Same footing for all: the demo's problem, 20 % noise in training and validation labels, seeds that
the demo does not use. A radius per variant, and the epochs of the early-stopped SGD. The learning
rate, shared by all variants, is chosen before for SGD on *clean* labels: with noise the rule would
pick one so small that 20 epochs do not fit the labels, which is early stopping under another name
and has a variant of its own (the sweep `sgd_lr` with noise is kept in the table to show it).
Each grid is geometric (factor 2) and is extended until the best value is inside it. Best: highest
mean validation accuracy over the seeds, ties by lower mean validation loss. Test data are never
read. Prints the lines of the study file; about 10 minutes on two cores:
python analysis_scripts/choose_rho.py [--smoke] [--workers N]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from landscape import results, sam
from landscape.results import Variable
from landscape.study.pool import run_jobs
from landscape.study.progress import Progress
from landscape.training import RecorderOptions, TrainingOptions, train

SEEDS = (100, 101, 102, 103, 104)
TRAINING = TrainingOptions(epochs=20, batch_size=64, momentum=0.9, weight_decay=5e-4)
OUT = Path(__file__).parent.parent / "figures" / "data" / "choose_rho.nc"
# variant: (recipe, its fixed options, what is chosen, first grid)
RADII = (0.1, 0.2, 0.4, 0.8)
LR = {"sgd": ("sgd", {}, "lr", (0.05, 0.1, 0.2))}  # clean labels
GRIDS = {
    "sgd_lr": ("sgd", {}, "lr", (0.00625, 0.0125, 0.025)),  # shown, not used
    "sgd_early": ("sgd", {}, "epochs", (4, 8, 16)),
    "sam": ("sam", {}, "rho", RADII),
    "asam": ("asam", {}, "rho", (0.5, 1.0, 2.0, 4.0)),
    "fsam": ("fsam", {}, "rho", RADII),
    "sam_on": ("sam_on", {}, "rho", (0.4, 0.8, 1.6, 3.2)),
    "ssam_f": ("ssam_f", {"sparsity": 0.5, "num_samples": 128}, "rho", RADII),
    "ssam_d": ("ssam_d", {"sparsity": 0.5}, "rho", RADII),
    "zsharp": ("zsharp", {"percentile": 0.95}, "rho", RADII),
    "zsharp_tensor": ("zsharp", {"percentile": 0.95, "norm_scope": "tensor"}, "rho", RADII),
    "lagnp": ("lagnp", {"alpha": 0.8, "fraction": 0.5}, "rho", RADII),
    "random_mask": ("random_mask", {"density": 0.05, "one_d": "none"}, "rho", RADII),
}


def train_one(job, _report):
    """Validation accuracy, validation loss, training loss after the last epoch."""
    from landscape import problems

    noise, recipe, options, training, seed = job
    data = problems.load_data("digits", label_noise=noise)
    model = problems.make_model("cnn", num_classes=10, input_shape=data.input_shape, seed=seed)
    off = RecorderOptions(scalars=False, snapshots=0)
    with tempfile.TemporaryDirectory() as folder:
        variant = sam.make(recipe, options)
        done = train(model, data, variant, training, seed=seed, folder=Path(folder), recorder=off)
    last = done.history[-1] if done.finished else {}
    return [last.get(key, np.nan) for key in ("val_accuracy", "val_loss", "train_loss")]


def evaluate(asked, training, seeds, workers):
    """Rows (variant, option, value, seed, accuracy, loss, training loss) of what is asked."""
    keys, jobs = [], []
    for name, (recipe, fixed, option, _), value in asked:
        own = replace(training, **{option: value}) if option != "rho" else training
        options = {**fixed, "rho": value} if option == "rho" else fixed
        for seed in seeds:
            keys.append((name, option, value, seed))
            jobs.append((0.0 if name in LR else 0.2, recipe, options, own, seed))
    with Progress([f"{k[0]} {k[1]}={k[2]:g}" for k in keys], every=30) as progress:
        events = run_jobs(train_one, jobs, workers=workers, threads=1, listen=progress.hear)
    failed = [f"{key}: {e.note}" for key, e in zip(keys, events, strict=True) if e.kind != "done"]
    if failed:
        raise SystemExit("\n".join(failed))
    return [(*key, *event.value) for key, event in zip(keys, events, strict=True)]


def best(rows, name):
    """The chosen value of a variant and its sorted grid."""
    grid = sorted({row[2] for row in rows if row[0] == name})
    score = {v: np.mean([r[4:6] for r in rows if r[0] == name and r[2] == v], axis=0) for v in grid}
    known = [value for value in grid if np.isfinite(score[value]).all()]
    return max(known, key=lambda value: (round(score[value][0], 9), -score[value][1])), grid


def choose(grids, training, seeds, workers, *, extend=True):
    """All rows, after extending each grid until its best value is inside it."""
    todo = [(name, grid, value) for name, grid in grids.items() for value in grid[3]]
    rows = []
    while todo:
        rows += evaluate(todo, training, seeds, workers)
        todo = []
        for name, grid in grids.items():
            value, values = best(rows, name)
            if extend and value == values[0] and value > 1:
                todo.append((name, grid, type(value)(value / 2)))
            elif extend and value == values[0] and grid[2] != "epochs":
                todo.append((name, grid, value / 2))
            elif extend and value == values[-1]:
                todo.append((name, grid, value * 2))
    return rows


def table(rows):
    """The rows as a result; `chosen` marks the values that went into the study file."""
    names = sorted({row[0] for row in rows})
    picked = {name: best(rows, name)[0] for name in names}
    columns = list(zip(*rows, strict=True))
    titles = ("Validation accuracy", "Validation loss", "Training loss")
    names = ("val_accuracy", "val_loss", "train_loss")
    variables = {
        name: Variable("run", np.array(values, float), "nats" if "loss" in name else "1", title)
        for name, values, title in zip(names, columns[4:], titles, strict=True)
    }
    coords = {
        "variant": ("run", np.array(columns[0], dtype=object)),
        "option": ("run", np.array(columns[1], dtype=object)),
        "value": ("run", np.array(columns[2], float)),
        "seed": ("run", np.array(columns[3])),
        "chosen": ("run", np.array([row[2] == picked[row[0]] for row in rows])),
    }
    rule = "highest mean validation accuracy, ties by lower mean validation loss; test never read"
    return results.make("choose_rho", variables, coords=coords, provenance={"rule": rule})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="one epoch, one seed, no extension")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.smoke:
        seeds, training = SEEDS[:1], replace(TRAINING, epochs=1)
        grids = {"sam": GRIDS["sam"]}
    else:
        seeds, training, grids = SEEDS, TRAINING, GRIDS
    rows = choose(LR, training, seeds, args.workers, extend=not args.smoke)
    lr = best(rows, "sgd")[0]
    print(f"[training]\nlr = {lr:g}", flush=True)
    rows += choose(grids, replace(training, lr=lr), seeds, args.workers, extend=not args.smoke)
    for name in grids:
        key = "training.epochs" if grids[name][2] == "epochs" else grids[name][2]
        print(f"[variants.{name}]\n{key} = {best(rows, name)[0]:g}", flush=True)
    if not args.smoke or args.out != OUT:
        results.save(table(rows), args.out)


if __name__ == "__main__":
    main()
