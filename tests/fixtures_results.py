"""A synthetic study folder to the schema: made-up numbers with a known story, no training.

The story of "noisy": each variant has an accuracy, a curvature and a training loss (STORY);
seeds share a common offset, so that pairing matters. "clean" is a null: flatness differs, accuracy
does not.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr

from landscape import results, storage
from landscape.results import Variable
from landscape.study.measurements import DEFAULT

TENSORS = (
    ("conv1.weight", "conv", 144, 4),
    ("norm1.weight", "norm", 16, 1),
    ("norm1.bias", "norm", 16, 1),
    ("conv2.weight", "conv", 4608, 4),
    ("norm2.weight", "norm", 32, 1),
    ("norm2.bias", "norm", 32, 1),
    ("conv3.weight", "conv", 18432, 4),
    ("norm3.weight", "norm", 64, 1),
    ("norm3.bias", "norm", 64, 1),
    ("head.weight", "linear", 640, 2),
    ("head.bias", "bias", 10, 1),
)


@dataclass(frozen=True)
class Story:
    """What is true of a variant in the made-up noisy setting."""

    label: str
    recipe: str
    rho: float
    accuracy: float
    curvature: float
    train_loss: float


STORY = {
    "sgd": Story("SGD", "sgd", 0.0, 0.880, 4.0, 0.05),
    "sgd_early": Story("SGD, stopped early", "sgd", 0.0, 0.905, 9.0, 0.55),
    "sam": Story("SAM", "sam", 0.4, 0.945, 2.0, 0.45),
    "asam": Story("ASAM", "asam", 2.0, 0.935, 2.4, 0.40),
    "fsam": Story("F-SAM", "fsam", 0.4, 0.942, 2.1, 0.43),
    "sam_on": Story("SAM-ON", "sam_on", 0.8, 0.925, 2.6, 0.30),
    "ssam_f": Story("SSAM-F", "ssam_f", 0.4, 0.930, 2.5, 0.35),
    "ssam_d": Story("SSAM-D", "ssam_d", 0.4, 0.929, 2.5, 0.36),
    "zsharp": Story("ZSharp", "zsharp", 0.4, 0.928, 2.3, 0.38),
    "zsharp_tensor": Story("ZSharp (per-tensor norm)", "zsharp", 0.2, 0.926, 2.4, 0.37),
    "lagnp": Story("LAGNP", "lagnp", 0.4, 0.915, 3.0, 0.25),
    "random_mask": Story("Random mask", "random_mask", 0.4, 0.927, 2.7, 0.33),
}
CLEAN = ("sgd", "sam", "sam_on", "zsharp", "random_mask")


def write_study(
    root: Path,
    *,
    noisy: tuple[str, ...] = tuple(STORY),
    clean: tuple[str, ...] = CLEAN,
    seeds: int = 5,
    clean_seeds: int = 3,
    without: tuple[str, ...] = (),
    diverged: tuple[tuple[str, str, int], ...] = (),
    absent: tuple[tuple[str, str, int], ...] = (),
    story: dict[str, Story] | None = None,
    trained: bool = True,
) -> storage.StudyFolder:
    """Write resolved.json and results/*.nc; `diverged` runs are NaN, `absent` ones missing."""
    story = story or STORY
    folder = storage.StudyFolder(Path(root))
    grid = [("noisy", v, s) for v in noisy for s in range(seeds)]
    grid += [("clean", v, s) for v in clean for s in range(clean_seeds)]
    runs = [_labels(story, *key) for key in grid]
    settings = {"noisy": {"title": "20 % label noise"}, "clean": {"title": "clean labels"}}
    present = {key[0] for key in grid}
    storage.write_json(
        folder.resolved,
        {
            "format": storage.STUDY_FORMAT,
            "name": "digits",
            "question": "Which SAM variants generalize better, and is it because they are flatter?",
            "versions": {"landscape": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
            "threads": 1,
            "device": "cpu",
            "dtype": "float32",
            "settings": {key: settings[key] for key in settings if key in present},
            "variants": {
                key: {
                    "label": story[key].label,
                    "recipe": story[key].recipe,
                    "options": {"rho": story[key].rho} if story[key].rho else {},
                    "order": index,
                }
                for index, key in enumerate(story)
                if key in {k[1] for k in grid}
            },
            "comparisons": {
                "metric": "test_accuracy",
                "setting": "noisy",
                "references": [r for r in ("sgd", "sam") if r in noisy],
            },
            "measure": {"examples": 256, "usual": list(DEFAULT)},
            "runs": [
                run | {"training": {"epochs": 8 if run["variant"] == "sgd_early" else 20}}
                for run in runs
            ],
        },
    )
    makers = dict(MAKERS)
    if not trained:
        without = (*without, "history", "perturbation_history", "mask_persistence")
    for name, (make, first_only) in makers.items():
        if name in without:
            continue
        parts = []
        for key, labels in zip(grid, runs, strict=True):
            if key in absent or (first_only and key[2] > 0):
                continue
            measurement = name.removesuffix("_eval")
            ds = make(_Run(story, *key, name))
            if key in diverged:
                ds = _diverge(ds)
            assert ds.attrs["measurement"] in (name, measurement)
            parts.append((labels, ds))
        if parts:
            results.save(results.combine(parts), folder.results / f"{name}.nc")
    return folder


def _labels(story: dict[str, Story], setting: str, variant: str, seed: int) -> dict:
    return {
        "run": f"{variant}-s{seed}-{setting[:4]}0a1",
        "variant": variant,
        "label": story[variant].label,
        "setting": setting,
        "seed": seed,
        "rho": story[variant].rho,
        "lr": 0.05,
        "batch_size": 64,
        "train_seconds": 3.0 if story[variant].recipe == "sgd" else 6.2,
    }


class _Run:
    """The truth about one run, and its own noise."""

    def __init__(self, story: dict[str, Story], setting: str, variant: str, seed: int, name: str):
        self.variant, self.setting, self.seed = variant, setting, seed
        self.story = story[variant]
        self.rng = np.random.default_rng([seed, len(name), list(story).index(variant)])
        common = np.random.default_rng([seed, 99]).normal()
        own = np.random.default_rng([seed, 7, list(story).index(variant)]).normal()
        noisy = setting == "noisy"
        accuracy = self.story.accuracy + 0.012 * common + 0.004 * own
        self.accuracy = accuracy if noisy else 0.985 + 0.002 * common + 0.001 * own
        self.curvature = self.story.curvature * np.exp(0.1 * common + 0.08 * own)
        self.curvature *= 1 if noisy else 0.3
        self.train_loss = self.story.train_loss * np.exp(0.1 * own) * (1 if noisy else 0.05)
        self.rho = self.story.rho


def _make(run: _Run, name: str, variables: dict, coords: dict | None = None, **extra) -> xr.Dataset:
    provenance = {"bn": "eval", "num_examples": 256, "dtype": "float32", "seed": 0} | extra
    return results.make(name, variables, coords=coords, provenance=provenance)


def _diverge(ds: xr.Dataset) -> xr.Dataset:
    return ds.map(lambda v: v * np.nan if v.dtype.kind == "f" else v, keep_attrs=True)


def top_eigenvalues(run: _Run) -> xr.Dataset:
    values = run.curvature * np.array([1, 0.8, 0.62, 0.5, 0.41])
    converged = [True, True, True, True, run.seed != 1]
    return _make(
        run,
        "top_eigenvalues",
        {
            "eigenvalue": Variable("rank", values, "nats", "Hessian eigenvalue"),
            "residual_norm": Variable("rank", values * 1e-5, "nats", "residual"),
            "converged": Variable("rank", converged, "1", "converged"),
            "num_hvps": Variable((), 40, "1", "Hessian-vector products"),
        },
        {"rank": np.arange(5)},
        tolerance=1e-4,
    )


def hessian_trace(run: _Run) -> xr.Dataset:
    samples = 15 * run.curvature * (1 + 0.1 * run.rng.normal(size=30))
    stderr = samples.std(ddof=1) / np.sqrt(30)
    return _make(
        run,
        "hessian_trace",
        {
            "trace_sample": Variable("probe", samples, "nats", "v'Hv"),
            "trace": Variable((), samples.mean(), "nats", "trace of the Hessian"),
            "trace_stderr": Variable((), stderr, "nats", "standard error of the trace"),
        },
    )


def spectral_density(run: _Run) -> xr.Dataset:
    nodes = np.sort(run.curvature * run.rng.beta(0.3, 3, size=(3, 40)), axis=1)
    weight = run.rng.dirichlet(np.linspace(5, 0.1, 40), size=3)
    return _make(
        run,
        "spectral_density",
        {
            "ritz_value": Variable(("probe", "node"), nodes, "nats", "Ritz value"),
            "weight": Variable(("probe", "node"), weight, "1", "quadrature weight"),
        },
    )


def sharpness(run: _Run) -> xr.Dataset:
    rho = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
    first, second = 0.05 * rho, 0.5 * run.curvature * rho**2
    gauss = 0.5 * rho**2 * 15 * run.curvature / 24058 * 40
    nats = {"units": "nats"}
    variables = {
        "one_step": first + second,
        "one_step_first_order": first,
        "one_step_second_order": second,
        "worst_case": 1.3 * (first + second),
        "gaussian": gauss,
        "gaussian_stderr": 0.03 * gauss,
    }
    return _make(
        run,
        "sharpness",
        {k: Variable("rho", v, long_name=k, **nats) for k, v in variables.items()},
        {"rho": Variable("rho", rho, "1", "radius of the perturbation")},
    )


def _slice(run: _Run, name: str, factor: float, bn: str) -> xr.Dataset:
    alpha = np.unique(np.concatenate([np.linspace(-1, 1, 21), np.linspace(-0.25, 0.25, 11)]))
    scale = run.curvature * factor * (1 + 0.3 * run.rng.random(8))[:, None]
    loss = run.train_loss + scale * alpha**2 / (1 + 0.1 * alpha**2)
    return _make(
        run,
        "loss_slice" if name == "loss_slice" else name,
        {
            "loss": Variable(("direction", "alpha"), loss, "nats", "loss"),
            "error_rate": Variable(("direction", "alpha"), 0.9 * np.tanh(loss), "1", "error rate"),
            "center_loss": Variable((), run.train_loss, "nats", "loss at theta"),
            "theta_norm": Variable((), 16.5, "1", "norm of theta"),
        },
        {"alpha": alpha, "direction": np.arange(8)},
        bn=bn,
        normalize="filter",
    )


def loss_slice(run: _Run) -> xr.Dataset:
    return _slice(run, "loss_slice", 1.0, "recalibrate")


def loss_slice_eval(run: _Run) -> xr.Dataset:
    return _slice(run, "loss_slice_eval", 4.0, "eval")


def loss_plane(run: _Run) -> xr.Dataset:
    axis = np.linspace(-1, 1, 21)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    loss = run.train_loss + run.curvature * (a**2 + 0.6 * b**2 + 0.3 * a * b)
    return _make(
        run,
        "loss_plane",
        {
            "loss": Variable(("alpha", "beta"), loss, "nats", "loss"),
            "error_rate": Variable(("alpha", "beta"), 0.9 * np.tanh(loss), "1", "error rate"),
            "center_loss": Variable((), run.train_loss, "nats", "loss at theta"),
            "axis_cosine": Variable((), 0.01, "1", "cosine of the axes"),
            "alpha_norm": Variable((), 16.0, "1", "norm of direction 1"),
            "beta_norm": Variable((), 16.1, "1", "norm of direction 2"),
        },
        {"alpha": axis, "beta": axis},
        bn="recalibrate",
        plane="random",
        normalize="filter",
    )


def _tensor_coords() -> dict:
    names, kinds, sizes, ndims = zip(*TENSORS, strict=True)
    return {
        "tensor": np.array(names, dtype=object),
        "kind": ("tensor", np.array(kinds, dtype=object)),
        "size": ("tensor", np.array(sizes)),
        "ndim": ("tensor", np.array(ndims)),
    }


def gradient_zscores(run: _Run) -> xr.Dataset:
    n, z = len(TENSORS), np.linspace(-6, 6, 121)
    tail = np.linspace(0, 0.3, n)[:, None]
    normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    laplace = np.exp(-np.sqrt(2) * np.abs(z)) / np.sqrt(2)
    flags = ["few elements" if size < 20 else "" for _, _, size, _ in TENSORS]
    per = {
        "mean": 0.01, "std": 0.02, "mean_over_std": 0.3, "skewness": 0.1, "excess_kurtosis": 2.0,
        "threshold": 2.0, "captured_energy": 0.4, "topk_jaccard": 0.95,
    }  # fmt: skip
    variables = {
        key: Variable("tensor", value * (1 + 0.1 * run.rng.random(n)), "1", key)
        for key, value in per.items()
    }
    density = (1 - tail) * normal + tail * laplace
    return _make(
        run,
        "gradient_zscores",
        variables
        | {
            "density": Variable(("tensor", "bin"), density, "1", "probability density of z"),
            "flag": Variable("tensor", np.array(flags, dtype=object), "1", "remark"),
        },
        _tensor_coords() | {"z": ("bin", z)},
        percentile=0.95,
    )


def perturbation(run: _Run) -> xr.Dataset:
    sizes = np.array([t[2] for t in TENSORS], float)
    one_d = np.array([t[3] == 1 for t in TENSORS])
    norm = np.array([t[1] == "norm" for t in TENSORS])
    recipe = run.story.recipe
    if recipe == "sgd":
        density, energy = np.zeros(len(sizes)), np.zeros(len(sizes))
    elif recipe == "sam_on":
        density, energy = norm.astype(float), np.where(norm, sizes, 0.0)
    elif recipe == "zsharp":
        density, energy = np.where(one_d, 1.0, 0.05), np.sqrt(sizes) * np.where(one_d, 0.5, 1)
    elif recipe == "random_mask":
        density, energy = np.where(one_d, 0.0, 0.05), np.where(one_d, 0.0, sizes)
    else:
        density, energy = np.ones(len(sizes)), sizes**0.7
    energy = energy * np.exp(0.1 * run.rng.normal(size=len(sizes)))
    energy = energy / energy.sum() if energy.sum() else energy * np.nan
    rho_eff = run.rho * {"ssam_f": 0.5, "ssam_d": 0.4}.get(run.variant, 1.0)
    ones = np.ones(len(sizes))
    scalars = {
        "rho": run.rho, "rho_eff": rho_eff,
        "radius_ratio": rho_eff / run.rho if run.rho else np.nan,
        "total_density": float((density * sizes).sum() / sizes.sum()),
        "loss_increase": 0.3 * rho_eff, "loss_increase_full": 0.2 * rho_eff,
    }  # fmt: skip
    return _make(
        run,
        "perturbation",
        {
            "density": Variable("tensor", density, "1", "share of coordinates perturbed"),
            "energy_share": Variable("tensor", energy, "1", "share of the squared norm"),
            "parameter_share": Variable("tensor", sizes / sizes.sum(), "1", "share of parameters"),
            "perturbation_norm": Variable("tensor", rho_eff * np.sqrt(energy), "1", "norm of e"),
            "relative_norm": Variable("tensor", 0.02 * ones, "1", "norm of e over norm of w"),
            "first_order_effect": Variable("tensor", 0.1 * energy, "nats", "g.e"),
        }
        | {k: Variable((), v, "nats" if "loss" in k else "1", k) for k, v in scalars.items()},
        _tensor_coords(),
    )


def mask_overlap(run: _Run) -> xr.Dataset:
    masks = ("zsharp", "topk_gradient", "ssam_f", "random_mask", "sam_on")
    pairs = list(combinations(masks, 2))
    kappa = np.array([0.9 if {"zsharp", "topk_gradient"} == set(p) else 0.05 for p in pairs])
    kappa = np.where(["random_mask" in p for p in pairs], 0.0, kappa)
    per = np.repeat(kappa[:, None], len(TENSORS), 1)
    null = np.full_like(per, 0.0256)
    coords = _tensor_coords()
    coords |= {
        "first": ("pair", np.array([p[0] for p in pairs], dtype=object)),
        "second": ("pair", np.array([p[1] for p in pairs], dtype=object)),
    }
    jaccard = null + (1 - null) * per
    return _make(
        run,
        "mask_overlap",
        {
            "jaccard": Variable(("pair", "tensor"), jaccard, "1", "Jaccard index"),
            "expected_jaccard": Variable(("pair", "tensor"), null, "1", "Jaccard of chance"),
            "kappa": Variable(("pair", "tensor"), per, "1", "Cohen's kappa"),
            "z_score": Variable(("pair", "tensor"), 40 * per, "1", "z of the overlap"),
            "jaccard_all": Variable("pair", jaccard[:, 0], "1", "Jaccard index"),
            "expected_jaccard_all": Variable("pair", null[:, 0], "1", "Jaccard of chance"),
            "kappa_all": Variable("pair", kappa, "1", "Cohen's kappa"),
        },
        coords,
    )


def mask_persistence(run: _Run) -> xr.Dataset:
    lag = np.array([1, 2, 4, 8, 16, 32])
    level = 0.9 if run.story.recipe.startswith("ssam") else 0.08
    if run.story.recipe == "random_mask":
        level = 0.0
    kappa = level * lag**-0.3 + 0.002 * run.rng.normal(size=lag.size)
    null = np.full(lag.size, 0.0256)
    return _make(
        run,
        "mask_persistence",
        {
            "jaccard": Variable("lag", null + (1 - null) * kappa, "1", "Jaccard index"),
            "expected_jaccard": Variable("lag", null, "1", "Jaccard index of chance"),
            "kappa": Variable("lag", kappa, "1", "Cohen's kappa"),
        },
        {"lag": lag},
    )


def generalization(run: _Run) -> xr.Dataset:
    test = np.round(run.accuracy * 500) / 500
    correct = run.rng.random(500) < test
    values = {
        "train_loss": (run.train_loss, "nats"), "train_accuracy": (0.95, "1"),
        "val_loss": (0.6, "nats"), "val_accuracy": (test - 0.15, "1"), "test_loss": (0.3, "nats"),
        "test_accuracy": (test, "1"), "accuracy_gap": (0.95 - test, "1"), "loss_gap": (0.2, "nats"),
        "mislabelled_fit": (0.9 - run.train_loss, "1"),
        "mislabelled_recovered": (run.train_loss, "1"), "clean_train_accuracy": (0.98, "1"),
        "ece": (0.05, "1"),
    }  # fmt: skip
    return _make(
        run,
        "generalization",
        {k: Variable((), v, u, k.replace("_", " ")) for k, (v, u) in values.items()}
        | {"test_correct": Variable("example", correct, "1", "test example is right")},
    )


def crosscheck(run: _Run) -> xr.Dataset:
    values = {
        "pyhessian_eigenvalue": 0.9995 * run.curvature, "landscape_eigenvalue": run.curvature,
        "residual_norm": 1e-5, "pyhessian_trace": 15.4 * run.curvature,
        "pyhessian_trace_stderr": 0.6 * run.curvature, "pyhessian_trace_probes": 26,
        "landscape_trace": 15 * run.curvature, "landscape_trace_stderr": 0.3 * run.curvature,
    }  # fmt: skip
    return _make(
        run,
        "crosscheck",
        {k: Variable((), v, "1" if "probes" in k else "nats", k) for k, v in values.items()},
    )


def history(run: _Run) -> xr.Dataset:
    epochs = 8 if run.variant == "sgd_early" else 20
    epoch = np.arange(1, epochs + 1)
    falling = np.exp(-epoch / 5)
    values = {
        "train_loss": (run.train_loss + 2 * falling, "nats"), "val_loss": (0.6 + falling, "nats"),
        "val_accuracy": (run.accuracy - 0.15 - 0.4 * falling, "1"),
        "lr": (0.05 * (1 + np.cos(np.pi * epoch / epochs)) / 2, "1"),
        "epoch_seconds": (np.full(epochs, 0.15), "s"),
    }  # fmt: skip
    return _make(
        run,
        "history",
        {k: Variable("epoch", v, u, k.replace("_", " ")) for k, (v, u) in values.items()},
        {"epoch": epoch},
    )


def perturbation_history(run: _Run) -> xr.Dataset:
    final = perturbation(run)
    epochs = 8 if run.variant == "sgd_early" else 20
    epoch = np.arange(1, epochs + 1)
    drift = 1 + 0.02 * epoch[:, None] * np.linspace(-1, 1, len(TENSORS))
    energy = final.energy_share.values * drift
    energy = energy / energy.sum(1, keepdims=True)
    density = np.repeat(final.density.values[None], epochs, 0)
    ratio = float(final.radius_ratio)
    over_time = {
        "perturbation_norm": run.rho * ratio * np.ones(epochs), "radius_ratio": ratio + 0 * epoch,
        "cosine": 0.8 - 0.02 * epoch, "sharpness_gap": 0.1 * run.rho * np.exp(-epoch / 20),
    }  # fmt: skip
    return _make(
        run,
        "perturbation_history",
        {
            "energy_share": Variable(("epoch", "tensor"), energy, "1", "share of the squared norm"),
            "density": Variable(("epoch", "tensor"), density, "1", "share perturbed"),
        }
        | {
            k: Variable("epoch", v, "nats" if k == "sharpness_gap" else "1", k.replace("_", " "))
            for k, v in over_time.items()
        },
        {"epoch": epoch} | _tensor_coords(),
    )


# name -> (maker, measured for the first seed only)
MAKERS = {
    "top_eigenvalues": (top_eigenvalues, False),
    "hessian_trace": (hessian_trace, False),
    "spectral_density": (spectral_density, True),
    "sharpness": (sharpness, False),
    "loss_slice": (loss_slice, False),
    "loss_slice_eval": (loss_slice_eval, False),
    "loss_plane": (loss_plane, True),
    "gradient_zscores": (gradient_zscores, False),
    "perturbation": (perturbation, False),
    "mask_overlap": (mask_overlap, True),
    "mask_persistence": (mask_persistence, False),
    "generalization": (generalization, False),
    "crosscheck": (crosscheck, True),
    "history": (history, False),
    "perturbation_history": (perturbation_history, False),
}
