"""Small results of the measurements of curvature, for figures and scripts."""

from landscape import measure, results, sam
from tests.measure_problems import cnn_risk

VARIANTS = {"sam": sam.sam(rho=0.1), "sam_on": sam.sam_on(rho=0.1)}
EIGEN = {"k": 3, "max_hvps": 40, "failure_probability": 1.0}

MAKERS = {
    "top_eigenvalues": lambda r: measure.top_eigenvalues(r, r.theta, **EIGEN, seed=0),
    "gauss_newton_eigenvalues": lambda r: measure.top_eigenvalues(
        r, r.theta, matrix="ggn", **EIGEN, seed=0
    ),
    "spectral_density": lambda r: measure.spectral_density(
        r, r.theta, num_probes=3, num_nodes=12, shifts=[0.01, 0.1, 1.0], seed=0
    ),
    "block_curvature": lambda r: measure.block_curvature(
        r, r.theta, by="module", num_probes=3, tolerance=1e-3, seed=0
    ),
    "frobenius": lambda r: measure.hessian_diagonal(r, r.theta, num_probes=5, seed=0).drop_dims(
        "parameter"
    ),
    "sharpness": lambda r: measure.sharpness(
        r, r.theta, rho=[0.05, 0.1, 0.2], ascent_steps=2, num_pairs=2, seed=0
    ),
    "adaptive_sharpness": lambda r: measure.adaptive_sharpness(
        r, r.theta, rho=[0.01, 0.02], ascent_steps=2, num_pairs=2, seed=0
    ),
    "m_sharpness": lambda r: measure.m_sharpness(
        r, r.theta, rho=[0.05, 0.1], batch_sizes=[2, 6, 24], seed=0
    ),
    "critical_sharpness": lambda r: measure.critical_sharpness(r, r.theta, tolerance=0.01),
    "minibatch_eigenvalues": lambda r: measure.minibatch_eigenvalues(
        r, r.theta, batch_size=6, k=2, tolerance=1e-3, seed=0
    ),
    "data_bracket": lambda r: measure.data_bracket(
        r, r.theta, num_folds=2, sizes=[6, 12], num_subsets=2, seed=0
    ),
    "training_curvature": lambda r: measure.training_curvature(
        r, [1.2 * r.theta, r.theta], epochs=[0, 3], lr=[0.1, 0.0], rho=0.1, momentum=0.9, seed=0
    ),
    "alignment": lambda r: measure.alignment(r, r.theta, variants=VARIANTS, k=2, seed=0),
}
RUNS = [("sgd", 0), ("sgd", 1), ("sam", 0)]


def measured(*names):
    """Combined results over RUNS, in the one setting of a study without settings, by name."""
    risks = [cnn_risk(seed=number)[0] for number in range(len(RUNS))]
    found = {}
    for name in names:
        parts = []
        for (variant, seed), risk in zip(RUNS, risks, strict=True):
            words = {"label": variant.upper(), "setting": "default"}
            labels = {"run": f"{variant}-{seed}", "variant": variant, "seed": seed, **words}
            parts.append((labels, MAKERS[name](risk)))
        found[name] = results.combine(parts)
    return found
