"""Small made-up planes, barriers and trajectories of three variants and three seeds."""

import numpy as np

from landscape import results
from landscape.results import Variable

VARIANTS = {"sgd": ("SGD", 2.0), "sam": ("SAM", 1.0), "zsharp": ("ZSharp", 0.7)}
SEEDS = (0, 1, 2)


def labels(variant, seed):
    return {
        "run": f"{variant}-s{seed}-x", "variant": variant, "label": VARIANTS[variant][0],
        "setting": "noisy", "seed": seed,
    }  # fmt: skip


def write_surfaces(folder):
    """Write loss_plane, barrier and trajectory of several seeds into a study's results."""
    rng = np.random.default_rng(0)
    keys = [(variant, seed) for variant in VARIANTS for seed in SEEDS]
    for name, make in (("loss_plane", _plane), ("barrier", _barrier), ("trajectory", _trajectory)):
        parts = [(labels(*key), make(rng, *key)) for key in keys]
        results.save(results.combine(parts), folder / "results" / f"{name}.nc")


def _made(name, variables, coords):
    provenance = {"bn": "recalibrate", "plane": "random", "plane_seed": 0, "normalize": "filter"}
    return results.make(name, variables, coords=coords, provenance=provenance)


def _plane(rng, variant, seed):
    axis = np.linspace(-1, 1, 9)
    bowl = VARIANTS[variant][1] * np.add.outer(axis**2, 0.6 * axis**2)
    loss = 0.1 + bowl + 0.02 * rng.random((9, 9))
    variables = {
        "loss": Variable(("alpha", "beta"), loss, "nats", "Loss"),
        "axis_cosine": Variable((), 0.01, "1", "Cosine"),
    }
    return _made("loss_plane", variables, {"alpha": axis, "beta": axis})


def _barrier(rng, variant, seed):
    others = [labels(v, s)["run"] for v in VARIANTS for s in SEEDS]
    own = others.index(labels(variant, seed)["run"])
    grid = np.linspace(0, 1, 5)
    heights = np.where(np.arange(9) >= own, rng.uniform(0.1, 1, 9), np.nan)
    heights[own] = 0.0
    loss = 0.2 + heights[:, None] * (4 * grid * (1 - grid))[None]
    variables = {
        "loss": Variable(("other", "alpha"), loss, "nats", "Loss"),
        "barrier": Variable("other", heights, "nats", "Barrier"),
    }
    coords = {"alpha": grid, "other": np.array(others, dtype=object)}
    return _made("barrier", variables, coords)


def _trajectory(rng, variant, seed):
    far = np.linspace(1, 0, 6)
    coordinate = np.stack([5 * far, 2 * far * (far - 0.5)], axis=1)
    alphas, betas = np.linspace(-0.5, 1.5, 5), np.linspace(-1.5, 1.5, 7)
    table = 0.2 + VARIANTS[variant][1] * np.add.outer(alphas**2, betas**2)
    loss = 0.2 + 2 * far
    variables = {
        "coordinate": Variable(("epoch", "direction"), coordinate, "1", "Coordinate"),
        "explained_share": Variable("direction", np.array([0.8, 0.1]), "1", "Share"),
        "random_walk_share": Variable("direction", np.array([0.7, 0.1]), "1", "Share"),
        "residual": Variable("epoch", 0.3 * far * (1 - far), "1", "Residual"),
        "loss": Variable("epoch", loss, "nats", "Loss"),
        "surface_loss": Variable("epoch", loss * 0.95, "nats", "Loss"),
        "plane_loss": Variable(("alpha", "beta"), table, "nats", "Loss"),
        "alpha_unit": Variable((), 5.0, "1", "Unit"),
        "beta_unit": Variable((), 1.0, "1", "Unit"),
    }
    coords = {
        "epoch": np.arange(6), "alpha": alphas, "beta": betas,
        "direction": np.array(["principal 1", "principal 2"], dtype=object),
    }  # fmt: skip
    return _made("trajectory", variables, coords)
