"""Curvature of the loss at the solution."""

import json

import xarray as xr

from landscape import measure, results, training
from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.measure.curvature.adaptive_sharpness import NORMS
from landscape.measure.curvature.blocks import BY, by_patterns
from landscape.measure.curvature.operator import MATRICES
from landscape.params import ParamLayout
from landscape.study import possible
from landscape.study.finished_run import Checkpoints, FinishedRun, training_objective
from landscape.study.measurements.record import (
    BLOCKS,
    FORWARD,
    LANCZOS,
    PRODUCT,
    Options,
    Record,
    Work,
)

OBJECTIVES = ("data", "training")


def top_eigenvalues(
    done: FinishedRun, *, k: int, which: lanczos.Which, tolerance: float, max_hvps: int
) -> xr.Dataset:
    """The k top Hessian eigenvalues on the fixed examples."""
    return measure.top_eigenvalues(
        done.risk(),
        done.theta,
        k=k,
        which=which,
        tolerance=tolerance or None,
        max_hvps=max_hvps or None,
        seed=done.seed,
    )


def hessian_trace(done: FinishedRun, *, num_probes: int) -> xr.Dataset:
    """Trace of the Hessian by Hutchinson's estimator."""
    return measure.hessian_trace(done.risk(), done.theta, num_probes=num_probes, seed=done.seed)


def spectral_density(
    done: FinishedRun,
    *,
    num_probes: int,
    num_nodes: int,
    shifts: tuple[float, ...],
) -> xr.Dataset:
    """Density of Hessian eigenvalues by stochastic Lanczos quadrature; effective dimension."""
    return measure.spectral_density(
        done.risk(),
        done.theta,
        num_probes=num_probes,
        num_nodes=num_nodes,
        shifts=list(shifts),
        seed=done.seed,
    )


def gauss_newton_eigenvalues(done: FinishedRun, *, k: int, max_hvps: int) -> xr.Dataset:
    """The k top eigenvalues of the Gauss-Newton matrix, with the exact Hessian of the loss."""
    found = measure.top_eigenvalues(
        done.risk(),
        done.theta,
        k=k,
        matrix="ggn",
        max_hvps=max_hvps or None,
        seed=done.seed,
    )
    return found.assign_attrs(measurement="gauss_newton_eigenvalues")


def block_curvature(
    done: FinishedRun,
    *,
    by: str,
    patterns: tuple[str, ...] = (),
    depth: int = 0,
    num_probes: int,
    matrix: str,
) -> xr.Dataset:
    """Largest eigenvalue and trace of the blocks of all tensors, modules or kinds.

    In the place of `by`, patterns are one block each of the tensors whose names match, such as
    "*attn*", and a depth of 2 makes the blocks "layers.0", "layers.1", ...
    """
    if patterns and depth:
        raise LandscapeError(
            f"[measure.block_curvature] patterns = {list(patterns)} and depth = {depth} are two "
            f"ways to make blocks; give one."
        )
    return measure.block_curvature(
        done.risk(),
        done.theta,
        by={pattern: pattern for pattern in patterns} or depth or by,
        num_probes=num_probes,
        matrix=matrix,
        seed=done.seed,
    )


def hessian_diagonal(done: FinishedRun, *, num_probes: int) -> xr.Dataset:
    """Diagonal of the Hessian, coordinate by coordinate: 16 bytes per parameter and run."""
    return measure.hessian_diagonal(done.risk(), done.theta, num_probes=num_probes, seed=done.seed)


def frobenius(done: FinishedRun, *, num_probes: int) -> xr.Dataset:
    """Frobenius norm of the Hessian, and the trace weighted by the squared parameters."""
    found = hessian_diagonal(done, num_probes=num_probes)
    return found.drop_dims("parameter").assign_attrs(measurement="frobenius")


def sharpness(
    done: FinishedRun,
    *,
    rho: tuple[float, ...],
    ascent_steps: int,
    restarts: int,
    num_pairs: int,
) -> xr.Dataset:
    """Loss increase on spheres of several radii."""
    return measure.sharpness(
        done.risk(),
        done.theta,
        rho=list(rho),
        ascent_steps=ascent_steps,
        restarts=restarts,
        num_pairs=num_pairs,
        seed=done.seed,
    )


def flatness_other_bn(
    done: FinishedRun, *, rho: tuple[float, ...], num_probes: int = 8, num_pairs: int
) -> xr.Dataset | None:
    """λ₁, trace and Gaussian sharpness under the BatchNorm mode that [measure] bn is not.

    None for a model without BatchNorm. The page asks of each mode whether its verdict is the same.
    """
    risk = done.risk_of_other_bn()
    if risk is None:
        return None
    top = measure.top_eigenvalues(risk, risk.theta, k=1, seed=done.seed)
    trace = measure.hessian_trace(risk, risk.theta, num_probes=num_probes, seed=done.seed)
    finite = measure.sharpness(
        risk, risk.theta, rho=list(rho), ascent_steps=0, restarts=0, num_pairs=num_pairs,
        seed=done.seed,
    )  # fmt: skip
    kept = top[["eigenvalue", "residual_norm", "converged"]]
    both = kept.assign(trace=trace.trace, gaussian=finite.gaussian)
    return both.assign_attrs(measurement="flatness_other_bn")


def crosscheck(done: FinishedRun, *, num_probes: int, max_iterations: int) -> xr.Dataset | None:
    """Eigenvalue and trace by PyHessian beside ours; None where processes share the weights."""
    risk = done.risk()
    if risk.layout.space is not None:
        return None
    return measure.crosscheck(
        risk,
        done.theta,
        num_probes=num_probes,
        max_iterations=max_iterations,
        seed=done.seed,
    )


def adaptive_sharpness(
    done: FinishedRun,
    *,
    rho: tuple[float, ...],
    norm: str,
    normalize_logits: bool,
    ascent_steps: int,
    restarts: int,
    num_pairs: int,
    batch_size: int,
    num_batches: int,
) -> xr.Dataset:
    """Loss increase within relative changes of every weight."""
    return measure.adaptive_sharpness(
        done.risk(),
        done.theta,
        rho=list(rho),
        norm=norm,
        normalize_logits=normalize_logits,
        ascent_steps=ascent_steps,
        restarts=restarts,
        num_pairs=num_pairs,
        batch_size=done.at_most(batch_size) if batch_size else None,
        num_batches=num_batches or None,
        seed=done.seed,
    )


def m_sharpness(
    done: FinishedRun,
    *,
    rho: tuple[float, ...],
    batch_sizes: tuple[int, ...],
) -> xr.Dataset:
    """One-step sharpness of batches of several sizes."""
    return measure.m_sharpness(
        done.risk(), done.theta, rho=list(rho), batch_sizes=list(batch_sizes), seed=done.seed
    )


def critical_sharpness(done: FinishedRun, *, first_step: float, tolerance: float) -> xr.Dataset:
    """2 over the smallest rate at which a gradient step raises the loss."""
    return measure.critical_sharpness(
        done.risk(), done.theta, first_step=first_step, tolerance=tolerance
    )


def minibatch_eigenvalues(
    done: FinishedRun,
    *,
    batch_size: int,
    num_batches: int,
    k: int,
    matrix: str,
    objective: str = "data",
) -> xr.Dataset:
    """Top eigenvalues of single mini-batches (num_batches = 0: of all there are).

    objective: "data", the loss of the study, or "training", the loss that was minimized: with label
    smoothing, weight decay and one draw of the augmentation.
    """
    risk = done.risk() if objective == "data" else training_objective(done)
    return measure.minibatch_eigenvalues(
        risk,
        done.theta,
        batch_size=done.at_most(batch_size),
        num_batches=num_batches or None,
        k=k,
        matrix=matrix,
        seed=done.seed,
    )


def data_bracket(
    done: FinishedRun, *, num_folds: int, sizes: tuple[int, ...], num_subsets: int
) -> xr.Dataset:
    """λ₁ of subsets of the data, and what it is on the examples that they leave out."""
    return measure.data_bracket(
        done.risk(),
        done.theta,
        num_folds=num_folds,
        sizes=list(sizes) or None,
        num_subsets=num_subsets,
        seed=done.seed,
    )


def training_curvature(done: FinishedRun, *, k: int) -> xr.Dataset | None:
    """Top eigenvalues at every checkpoint that was kept, with the edges of stability.

    The checkpoints: those of `[training] keep_every`, or the files of a pattern with {step}, whose
    `epoch` is that step. SAM's edge is drawn for the recipe sam alone, whose step it was derived
    for; adaptive optimizers and trainings elsewhere have none of these.
    """
    run, options = done.run, training.TrainingOptions(**done.run.training)
    if run.weights is not None and len(run.trail) < 2:
        return None
    points = Checkpoints(done)
    known = run.weights is None and options.base == "sgd" and not options.nesterov
    known = known and not possible.is_free(run.recipe)
    found = measure.training_curvature(
        done.risk(),
        points,
        lr=points.rates if known else 0.0,
        epochs=points.epochs,
        rho=float(run.options["rho"]) if known and run.recipe == "sam" else 0.0,
        momentum=options.momentum if known else 0.0,
        k=k,
        seed=done.seed,
    )
    said = results.provenance(found) | {"epoch_is": "epoch" if run.weights is None else "step"}
    return found.assign_attrs(provenance=json.dumps(said, sort_keys=True))


def alignment(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("sam", "asam", "sam_on", "zsharp", "random_mask"),
    k: int,
    batch_size: int,
) -> xr.Dataset:
    """Energy of the perturbations of several variants in the top eigenspace, against chance."""
    return measure.alignment(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        k=k,
        batch_size=done.at_most(batch_size),
        seed=done.seed,
    )


def _lanczos(options: Options, _work: Work) -> float:
    # Lanczos stops when it has converged, so its count is typical.
    return PRODUCT * (options["max_hvps"] or 8 * options["k"]) + 1


def _has_blocks(options: Options, done: FinishedRun) -> None:
    """Patterns name tensors of the model, each of them once."""
    by_patterns(ParamLayout.of(done.model), {p: p for p in options["patterns"]})


def _probes(options: Options, _work: Work) -> float:
    return PRODUCT * options["num_probes"] + 1


def _sharpness(o: Options, _work: Work) -> float:
    steps = (1 + o["restarts"]) * o["ascent_steps"]
    return 4 + len(o["rho"]) * (FORWARD + steps + 2 * o["num_pairs"] * FORWARD)


def _no_more(option: str, asked: int, examples: int) -> None:
    if asked > examples:
        raise LandscapeError(
            f"{option}: {asked} asked of {examples} examples; {examples} at most are possible, or "
            f"raise [measure] examples."
        )


def _parts(o: Options, examples: int) -> None:
    _no_more("num_folds", o["num_folds"], examples)
    # Some examples are left to hold out.
    _no_more("sizes", max(o["sizes"], default=0), examples - 1)


_MATRIX = {"matrix": MATRICES}
RECORDS = (
    Record(
        top_eigenvalues,
        cost=_lanczos,
        default=True,
        below={"tolerance": 1},
    ),
    Record(hessian_trace, cost=_probes, default=True),
    Record(
        spectral_density,
        cost=lambda o, _: PRODUCT * o["num_probes"] * o["num_nodes"] + 1,
        default=True,
        first_seed_only=True,
        least={"num_probes": 1},
    ),
    Record(gauss_newton_eigenvalues, cost=_lanczos, of=(measure.top_eigenvalues,)),
    Record(
        block_curvature,
        cost=lambda o, _: PRODUCT * (o["num_probes"] + 15 * BLOCKS[o["by"]]) + 2,
        choices={"by": BY, **_MATRIX},
        fits=_has_blocks,
    ),
    Record(hessian_diagonal, cost=_probes, first_seed_only=True, drawn=False),
    Record(frobenius, cost=_probes, of=(measure.hessian_diagonal,)),
    Record(sharpness, cost=_sharpness, default=True, least={"ascent_steps": 0, "restarts": 0}),
    Record(
        flatness_other_bn,
        cost=lambda o, _: (
            PRODUCT * (LANCZOS + o["num_probes"]) + 2 * len(o["rho"]) * o["num_pairs"] * FORWARD
        ),
        of=(measure.sharpness,),
        drawn=False,
    ),
    Record(
        adaptive_sharpness,
        cost=lambda o, _: (
            len(o["rho"]) * ((1 + o["restarts"]) * o["ascent_steps"] + 2 * o["num_pairs"] * FORWARD)
        ),
        choices={"norm": NORMS},
        least={"batch_size": 0, "restarts": 0},
    ),
    Record(
        m_sharpness,
        cost=lambda o, _: len(o["batch_sizes"]) * (1 + len(o["rho"]) * FORWARD),
        agree=lambda o, examples: _no_more("batch_sizes", max(o["batch_sizes"]), examples),
    ),
    Record(
        critical_sharpness,
        cost=lambda *_: 1 + 20 * FORWARD,
        above=("first_step", "tolerance"),
        below={"tolerance": 1},
    ),
    Record(
        minibatch_eigenvalues,
        cost=lambda o, _: 2 * PRODUCT * 15 * o["k"],
        choices={"objective": OBJECTIVES, **_MATRIX},
    ),
    Record(
        data_bracket,
        cost=lambda o, _: PRODUCT * LANCZOS * (o["num_folds"] + 1 + o["num_subsets"]),
        agree=_parts,
    ),
    Record(
        training_curvature,
        cost=lambda o, work: work.checkpoints * (PRODUCT * 8 * o["k"] + 1),
        along_training=True,
    ),
    Record(
        alignment,
        cost=lambda o, _: LANCZOS * o["k"] + 1,
        variants=("variants",),
    ),
    Record(
        crosscheck,
        cost=lambda o, _: PRODUCT * o["num_probes"] + 40,
        default=True,
        first_seed_only=True,
        drawn=False,
    ),
)
