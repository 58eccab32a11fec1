"""Every measurement as a call of (risk, size): what grows with `size` is what it loops over."""

import numpy as np
import torch

from landscape import EmpiricalRisk, measure, sam
from tests.measure_problems import cnn, images

CE = torch.nn.CrossEntropyLoss()
VARIANTS = {"zsharp": sam.zsharp(rho=0.1), "sam": sam.sam(rho=0.05), "asam": sam.asam(rho=0.5)}


def risk_on(device, *, n=24, bn="eval", **options):
    return EmpiricalRisk(cnn(), CE, images(n), bn=bn, device=device, dtype=torch.float64, **options)


def away(risk, *seeds, scale=0.05):
    """Points near theta, the same for every device."""
    found = []
    for seed in seeds:
        source = torch.Generator().manual_seed(seed)
        draw = torch.randn(risk.theta.numel(), generator=source, dtype=torch.float64)
        found.append(risk.theta + scale * draw.to(risk.theta))
    return found


def radii(size):
    return list(np.linspace(0.02, 0.1, 2 * size))


def some(size):
    """2 or 4 variants."""
    made = [sam.sam(rho=0.05), sam.zsharp(rho=0.1), sam.asam(rho=0.5), sam.gsam(rho=0.05)]
    return {f"{i} {v.name}": v for i, v in enumerate(made[: 2 * size])}


def correct(size):
    return np.random.default_rng(0).random((3 * size, 24)) < 0.5


# fmt: off
CALLS = {
    "adaptive_sharpness": lambda r, s: measure.adaptive_sharpness(r, r.theta, rho=radii(s), ascent_steps=2, num_pairs=2, seed=0),
    "adaptive_sharpness steps": lambda r, s: measure.adaptive_sharpness(r, r.theta, rho=[0.02], ascent_steps=3 * s, num_pairs=2 * s, seed=0),
    "m_sharpness": lambda r, s: measure.m_sharpness(r, r.theta, rho=radii(s), batch_sizes=(1, 4, 8), seed=0),
    "m_sharpness batches": lambda r, s: measure.m_sharpness(r, r.theta, rho=[0.05], batch_sizes=(4 // s,), seed=0),
    "training_curvature": lambda r, s: measure.training_curvature(r, away(r, *range(2 * s)), lr=0.1, seed=0),
    "block_curvature": lambda r, s: measure.block_curvature(r, r.theta, num_probes=4 * s, seed=0),
    "hessian_diagonal": lambda r, s: measure.hessian_diagonal(r, r.theta, num_probes=4 * s, seed=0),
    "critical_sharpness": lambda r, s: measure.critical_sharpness(r, r.theta),
    "directional_sharpness": lambda r, s: measure.directional_sharpness(r, r.theta, by=("kind", "tensor")[s - 1]),
    "crosscheck": lambda r, s: measure.crosscheck(r, r.theta, num_probes=3, max_iterations=20, seed=0),
    "minibatch_eigenvalues": lambda r, s: measure.minibatch_eigenvalues(r, r.theta, batch_size=8 // s, seed=0),
    "data_bracket": lambda r, s: measure.data_bracket(r, r.theta, num_folds=2, sizes=[6, 12], num_subsets=2 * s, seed=0),
    "curvature_map": lambda r, s: measure.curvature_map(r, r.theta, points=2 * s + 1, tolerance=0.1, seed=0),
    "sharpness": lambda r, s: measure.sharpness(r, r.theta, rho=radii(s), ascent_steps=2, num_pairs=2, seed=0),
    "sharpness steps": lambda r, s: measure.sharpness(r, r.theta, rho=[0.02], ascent_steps=3 * s, restarts=2 * s, num_pairs=2 * s, seed=0),
    "spectral_density": lambda r, s: measure.spectral_density(r, r.theta, num_probes=2 * s, num_nodes=6 * s, seed=0),
    "hessian_trace": lambda r, s: measure.hessian_trace(r, r.theta, num_probes=3 * s, seed=0),
    "hessian_trace hutch++": lambda r, s: measure.hessian_trace(r, r.theta, num_probes=6 * s, method="hutch++", seed=0),
    "top_eigenvalues": lambda r, s: measure.top_eigenvalues(r, r.theta, k=2 * s, seed=0),
    "top_eigenvalues ggn": lambda r, s: measure.top_eigenvalues(r, r.theta, k=2, matrix="ggn", seed=0),
    "calibration": lambda r, s: measure.calibration(r, r.theta, num_bins=5 * s),
    "features": lambda r, s: measure.features(r, r.theta, modules=("2", "5", "8")[: s + 1], seed=0),
    "generalization": lambda r, s: measure.generalization({"train": r, "test": r}, r.theta, clean_targets=images(24)[1]),
    "margins": lambda r, s: measure.margins(r, r.theta),
    "memorization": lambda r, s: measure.memorization(r, r.theta, clean_targets=images(24)[1], correct=correct(s), epochs=list(range(3 * s))),
    "robustness": lambda r, s: measure.robustness(r, r.theta, num_draws=2 * s, seed=0),
    "alignment": lambda r, s: measure.alignment(r, r.theta, variants=some(s), k=2, batch_size=8, seed=0),
    "enrichment": lambda r, s: measure.enrichment(r, r.theta, variants=VARIANTS, k=2, num_probes=4 * s, fisher_examples=8 * s, batch_size=8, seed=0),
    "perturbation_controls": lambda r, s: measure.perturbation_controls(r, r.theta, variant=VARIANTS["zsharp"], num_draws=2 * s, batch_size=8, seed=0),
    "gradient_noise": lambda r, s: measure.gradient_noise(r, r.theta, batch_size=8 // s, lr=0.1, seed=0),
    "norms": lambda r, s: measure.norms(r, r.theta, initial=away(r, 1)[0]),
    "mask_overlap": lambda r, s: measure.mask_overlap(r, r.theta, variants=some(s), batch_size=8, num_permutations=99, seed=0),
    "batch_overlap": lambda r, s: measure.batch_overlap(r, r.theta, variants=some(1), batch_size=6, num_batches=2 * s, seed=0),
    "perturbation": lambda r, s: measure.perturbation(r, r.theta, variant=VARIANTS["zsharp"], batch_size=8, seed=0),
    "perturbation_cosines": lambda r, s: measure.perturbation_cosines(r, r.theta, variants=some(s), batch_size=8, seed=0),
    "gradient_zscores": lambda r, s: measure.gradient_zscores(r, r.theta),
    "gradient_zscores batches": lambda r, s: measure.gradient_zscores(r, r.theta, source="mini-batch", batch_size=6, num_batches=2 * s),
    "barrier": lambda r, s: measure.barrier(r, r.theta, others=dict(zip("ab", away(r, 1, 2), strict=True)), points=4 * s + 1),
    "barrier_matrix": lambda r, s: measure.barrier_matrix(r, dict(zip("abc", [r.theta, *away(r, 1, 2)], strict=True)), points=4 * s + 1),
    "bezier": lambda r, s: measure.bezier(r, r.theta, end=away(r, 1)[0], training=measure.CurveTraining(steps=4 * s, lr=0.01, batch_size=8), points=5, seed=0),
    "three_points": lambda r, s: measure.three_points(r, dict(zip("abc", [r.theta, *away(r, 1, 2)], strict=True)), cells=2 * s),
    "loss_slice": lambda r, s: measure.loss_slice(r, r.theta, num_directions=2 * s, points=4 * s + 1, seed=0),
    "loss_plane": lambda r, s: measure.loss_plane(r, r.theta, points=4 * s + 1, seed=0),
    "interpolation": lambda r, s: measure.interpolation(r, r.theta, end=away(r, 1)[0], points=4 * s + 1),
    "trajectory": lambda r, s: measure.trajectory(r, away(r, *range(4 * s)), grid=4 * s + 1),
    "perturbation_slice": lambda r, s: measure.perturbation_slice(r, r.theta, variants=some(1), batch_size=8, points=4 * s + 1, seed=0),
    "correct_examples": lambda r, s: measure.correct_examples(r, r.theta),
}
# fmt: on
# What takes no risk: recorded files, formulas, grids, and a class that a call above uses.
WITHOUT_A_DEVICE = {
    "CurveTraining",
    "PyHessian",
    "mask_filters",
    "optimizer_update",
    "mask_persistence",
    "mask_selection",
    "sam_edge",
    "saved_mask_overlap",
    "sgd_edge",
    "streamed_zscores",
    "symmetric_grid",
    "zscore_history",
}  # fmt: skip
