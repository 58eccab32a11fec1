"""Small results of the measurements themselves: what is perturbed, selected and learned."""

import numpy as np
import torch

from landscape import measure, results, sam
from landscape.results import Variable
from landscape.streams import PackedMasks
from tests.measure_problems import cnn_risk, images

MASKED = {
    "zsharp": sam.zsharp(rho=0.1, percentile=0.8),
    "topk_gradient": sam.topk_gradient(rho=0.1, density=0.2),
    "random_mask": sam.random_mask(rho=0.1, density=0.2),
}
LABELS = {"sgd": "SGD", "sam": "SAM", "zsharp": "ZSharp"}
KINDS = {"conv.weight": "conv", "norm.weight": "norm"}
TENSORS = (("conv1.weight", "conv"), ("norm1.weight", "norm"), ("fc.weight", "linear"),
           ("fc.bias", "bias"))  # fmt: skip


def study(make, variants=("sam", "zsharp"), seeds=2):
    """A combined result: `make(variant, seed)` for every run."""
    parts = []
    for variant in variants:
        for seed in range(seeds):
            labels = {
                "run": f"{variant}-s{seed}-00c0ffee",
                "variant": variant,
                "label": LABELS[variant],
                "setting": "noisy",
                "seed": seed,
            }
            parts.append((labels, make(variant, seed)))
    return results.combine(parts)


def masks(seed, steps=(0, 1, 2, 4, 8), density=0.3, keep=0.5):
    """Snapshots of a 4 x 3 x 3 x 3 layer and a vector that is always selected."""
    rng = np.random.default_rng(seed)
    fixed, found = rng.random(108) < density, []
    for step in steps:
        fresh = rng.random(108) < density
        mask = np.where(rng.random(108) < keep, fixed, fresh)
        found.append((step, PackedMasks.of({"conv.weight": mask, "norm.weight": np.ones(4)})))
    return found


def spread(ds, seed):
    """Another seed of the same result: numbers a tenth apart."""
    return ds.map(lambda v: v * (1 + 0.1 * seed) if v.dtype.kind == "f" else v, keep_attrs=True)


def _correct():
    return np.random.default_rng(0).random((4, 24)) < 0.6


def _wrong(y):
    return (y + torch.arange(24) % 3) % 4


# Of one risk: name -> function of it.
ONCE = {
    "gradient_zscores": lambda r: measure.gradient_zscores(r, r.theta, percentile=0.8),
    "mask_overlap": lambda r: measure.mask_overlap(
        r, r.theta, variants=MASKED, batch_size=8, num_permutations=19, seed=0
    ),
    "batch_overlap": lambda r: measure.batch_overlap(
        r, r.theta, variants=MASKED, batch_size=6, num_batches=2, seed=0
    ),
    "enrichment": lambda r: measure.enrichment(
        r, r.theta, variants=MASKED, k=1, num_probes=2, fisher_examples=4, batch_size=8, seed=0
    ),
    "perturbation_cosines": lambda r: measure.perturbation_cosines(
        r, r.theta, variants=MASKED, batch_size=8, seed=0
    ),
    "perturbation_controls": lambda r: measure.perturbation_controls(
        r, r.theta, variant=MASKED["zsharp"], num_draws=2, batch_size=8, seed=0
    ),
    "gradient_noise": lambda r: measure.gradient_noise(r, r.theta, batch_size=6, seed=0),
    "calibration": lambda r: measure.calibration(r, r.theta, num_bins=5),
    "norms": lambda r: measure.norms(r, r.theta, initial=0.5 * r.theta),
    "features": lambda r: measure.features(r, r.theta, num_examples=16, seed=0),
    "margins": lambda r: measure.margins(r, r.theta),
    "robustness": lambda r: measure.robustness(r, r.theta, num_draws=2, seed=0),
    "memorization": lambda r: measure.memorization(
        r, r.theta, clean_targets=_wrong(images(24)[1]), correct=_correct(), epochs=[1, 2, 3, 4]
    ),
}
# Of recorded masks: name -> function of variant and seed.
RECORDED = {
    "mask_selection": lambda v, s: measure.mask_selection(masks(s), kinds=KINDS),
    "mask_persistence": lambda v, s: measure.mask_persistence(
        # A mask that never changes is never halved.
        masks(s, keep=1.0 if v == "sam" else 0.3)
    ),
    "mask_filters": lambda v, s: measure.mask_filters(
        masks(s), tensor="conv.weight", shape=(4, 3, 3, 3)
    ),
    "saved_mask_overlap": lambda v, s: measure.saved_mask_overlap(
        {f"seed {i}": masks(i)[-1][1] for i in range(3)}, kinds=KINDS
    ),
    "perturbation_history": lambda v, s: history(s),
}


def measured(*names):
    """Combined results of two variants and two seeds, by name; all of them by default."""
    risk, _ = cnn_risk(n=24)
    found = {}
    for name in names or (*ONCE, *RECORDED):
        if name in ONCE:
            ds = ONCE[name](risk)
            found[name] = study(lambda _, seed, ds=ds: spread(ds, seed))
        else:
            found[name] = study(RECORDED[name], seeds=1 if name == "saved_mask_overlap" else 2)
    return found


def history(seed, tensors=None, epochs=4):
    """Recorded perturbations: the energy share of tensor i at epoch t is made of i, t and seed."""
    names, kinds = zip(*(tensors or TENSORS), strict=True)
    count = len(names)
    energy = (1.0 + np.arange(count) + seed) * np.linspace(1, 2, epochs)[:, None]
    energy[:, [k == "norm" for k in kinds]] *= 0.01
    energy[:, 1] = 0.0
    energy = energy / energy.sum(1, keepdims=True)
    both = ("epoch", "tensor")
    variables = {
        "energy_share": Variable(both, energy, "1", "share of the energy"),
        "norm_ratio": Variable(both, 0.1 * energy**0.5, "1", "norm over that of the weights"),
        "density": Variable(both, np.ones_like(energy), "1", "density"),
    }
    coords = {
        "epoch": np.arange(1, epochs + 1),
        "tensor": np.array(names, dtype=object),
        "kind": ("tensor", np.array(kinds, dtype=object)),
        "size": ("tensor", np.full(count, 100)),
    }
    return results.make("perturbation_history", variables, coords=coords, provenance={})
