"""Lines and planes through parameter space: an origin and directions, shared between models.

Random directions come from the seed alone: the same normal draws serve every model of one
architecture and are then normalized to each model's own weights, so that slices of different
variants can be compared (arXiv:1712.09913, section 4).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape import seeds
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.plane.base import Plane, load, save
from landscape.plane.filters import Filters, is_one_d
from landscape.risk import EmpiricalRisk
from landscape.vectors import combine, dot, drawn, gram, norm, project, row_norms, unit

__all__ = [
    "Filters",
    "Plane",
    "eigenvectors",
    "gradient",
    "interpolation",
    "is_one_d",
    "load",
    "orthogonalized",
    "perturbations",
    "random",
    "save",
    "shared",
    "through",
    "trajectory",
]

NORMALIZATIONS = ("filter", "layer", "global", "none")
ONE_D = ("zero", "random")


# --- random directions -------------------------------------------------------------------------


def random(
    model: EmpiricalRisk | nn.Module | ParamLayout,
    theta: Float[Tensor, "P"],
    *,
    num_directions: int,
    normalize: str = "filter",
    one_d: str = "zero",
    reference: Float[Tensor, "P"] | None = None,
    seed: int,
) -> Plane:
    """Directions d ~ N(0, I), each normalized against theta (arXiv:1712.09913, section 4).

    normalize="filter": d_f <- d_f ‖w_f‖ / ‖d_f‖ for every filter f (see `Filters`); "layer": the
    same per tensor; "global": ‖d‖ = ‖theta‖; "none": raw draws. one_d="zero" leaves biases and norm
    parameters alone (as the figures of that paper); "random" treats each as one filter.
    reference: normalize against these weights instead of theta (one radius for all models).
    Draw i depends on `seed` and i alone; it is made in float64 on the CPU for every dtype and
    device. model: a risk or a module; a bare layout cannot tell transposed convolutions.
    num_directions: m. Returns a `Plane` at theta.

    Example:
        >>> axes = plane.random(risk, theta, num_directions=2, seed=0)
        >>> weight = slice(0, 32)
        >>> bool(torch.allclose(axes.directions[0, weight].norm(), theta[weight].norm()))
        True
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("one_d", one_d, ONE_D)
    check_count("num_directions", num_directions, hint=", since a slice needs one or more")
    rule = Filters.of(model)
    if theta.shape != (rule.layout.num_parameters,):
        raise LandscapeError(
            f"theta has shape {tuple(theta.shape)} where the model has P = "
            f"{rule.layout.num_parameters} trainable parameters; give a checkpoint of this model."
        )
    weights = theta if reference is None else reference
    if weights.shape != theta.shape:
        raise LandscapeError(
            f"The reference has {weights.numel()} parameters and the model {theta.numel()}; "
            f"give weights of the same architecture."
        )
    generator = seeds.generator(seed, purpose="directions")
    rows = theta.new_empty((num_directions, theta.numel()))
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    for row in rows:
        draw = drawn(normal, theta)
        row.copy_(rule.normalized(draw, weights, normalize=normalize, one_d=one_d))
    if one_d == "zero" and all(is_one_d(tensor) for tensor in rule.layout.tensors):
        raise LandscapeError(
            f"one_d='zero' leaves nothing of the {len(rule.layout.tensors)} trainable tensors, "
            f"which all have one axis; use one_d='random'."
        )
    labels = tuple(f"random {i + 1}" for i in range(num_directions))
    details = {
        "normalize": normalize,
        "one_d": one_d,
        "plane_seed": seed,
        "reference": "own weights" if reference is None else "given weights",
        "orthogonalized": False,
    }
    return Plane(theta, rows, "random", labels, details)


def shared(
    directions: Plane,
    model: EmpiricalRisk | nn.Module,
    theta: Float[Tensor, "P"],
    *,
    normalize: str = "filter",
    one_d: str = "zero",
    reference: Float[Tensor, "P"] | None = None,
) -> Plane:
    """One set of directions, say a saved one, at another model: normalized to theta anew.

    Filters are only rescaled, so that the directions that `random` made for one model give, at
    another one, what `random` makes there from the same seed; 0 stays 0. reference: normalize
    against these weights instead (one radius for all models).
    normalize, one_d: as for `random`. Directions of arXiv:1712.09913.

    Example:
        >>> here = plane.random(risk, theta, num_directions=2, seed=0)
        >>> there = plane.shared(here, risk, other)
        >>> again = plane.random(risk, other, num_directions=2, seed=0)
        >>> bool(torch.allclose(there.directions, again.directions))
        True
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("one_d", one_d, ONE_D)
    weights = theta if reference is None else reference
    for what, size in (("directions", directions.origin), ("reference", weights)):
        if size.shape != theta.shape:
            raise LandscapeError(
                f"The {what} have {size.numel()} parameters and the model {theta.numel()}; "
                f"give those of the same architecture."
            )
    rule = Filters.of(model)
    rows = [
        rule.normalized(d.to(theta), weights, normalize=normalize, one_d=one_d)
        for d in directions.directions
    ]
    details = {
        **directions.details,
        "normalize": normalize,
        "one_d": one_d,
        "reference": "own weights" if reference is None else "given weights",
        "orthogonalized": False,
    }
    return Plane(theta, torch.stack(rows), directions.kind, directions.labels, details)


def orthogonalized(plane: Plane) -> Plane:
    """The directions of a plane made orthogonal in their order, each keeping its length.

    A choice to be stated: random directions are nearly orthogonal without (`Plane.cosines`), and
    what is taken from the later ones moves the norms of their filters away from those of the
    weights. "orthogonalized" stands in the provenance of what is measured.
    By Gram and Schmidt's definition.

    Example:
        >>> axes = plane.random(risk, theta, num_directions=2, seed=0)
        >>> abs(plane.orthogonalized(axes).largest_cosine) < 1e-12
        True
    """
    rows: list[Tensor] = []
    for label, d in zip(plane.labels, plane.directions, strict=True):
        rows.append(_beside(unit(d), rows, label))
    units = torch.stack(rows) * plane.norms.to(plane.directions)[:, None]
    details = {**plane.details, "orthogonalized": True}
    return Plane(plane.origin, units, plane.kind, plane.labels, details)


def _beside(row: Tensor, others: Sequence[Tensor], label: str) -> Tensor:
    """What of a unit row is orthogonal to other units, as a unit."""
    # Twice: once loses orthogonality when two nearly agree.
    for _ in range(2):
        for other in others:
            row = row - dot(row, other) * other
        left = norm(row)
        if left < 100 * torch.finfo(row.dtype).eps:
            raise LandscapeError(
                f"The direction {label!r} lies along the ones before it, so that nothing of it is "
                f"left to be orthogonal; leave it out."
            )
        row = row / left
    return row


# --- directions that mean something ------------------------------------------------------------


def through(
    a: Float[Tensor, "P"],
    b: Float[Tensor, "P"],
    c: Float[Tensor, "P"],
    *,
    labels: tuple[str, str, str] = ("a", "b", "c"),
) -> Plane:
    """The plane with a at (0, 0), b at (1, 0) and c at (0, 1); its axes are oblique in general.

    a, b, c: weights (P,); labels: their names. arXiv:1802.10026, Fig. 1.

    Example:
        >>> axes = plane.through(theta, other, (theta + other) * 2)
        >>> bool(torch.allclose(axes.point(1.0, 0.0), other))
        True
    """
    _same_size(dict(zip(labels, (a, b, c), strict=True)))
    directions = torch.stack([b - a, c - a])
    names = tuple(f"{labels[0]} to {label}" for label in labels[1:])
    plane = Plane(a, directions, "through", names, {"points": list(labels)})
    cosine = abs(float(plane.cosines[0, 1]))
    if cosine > 1 - 1e-10:
        raise LandscapeError(
            f"The points {', '.join(labels)} lie on one line (|cosine| = {cosine:.12f}); "
            f"three points that span a plane are needed, or plane.interpolation for two."
        )
    return plane


def interpolation(
    a: Float[Tensor, "P"], b: Float[Tensor, "P"], *, labels: tuple[str, str] = ("a", "b")
) -> Plane:
    """The line with a at 0 and b at 1.

    a, b: weights (P,); labels: their names. By definition, the line (1 - c) a + c b.

    Example:
        >>> line = plane.interpolation(theta, other)
        >>> bool(torch.allclose(line.point(1.0), other))
        True
    """
    _same_size(dict(zip(labels, (a, b), strict=True)))
    details = {"points": list(labels)}
    return Plane(a, (b - a)[None], "interpolation", (f"{labels[0]} to {labels[1]}",), details)


def eigenvectors(
    theta: Float[Tensor, "P"],
    vectors: Float[Tensor, "m P"],
    *,
    gradient: Float[Tensor, "P"] | None = None,
) -> Plane:
    """Unit eigenvectors as axes, so that coordinates are distances.

    An eigenvector has no sign: with `gradient`, each is turned so that gᵀv >= 0.
    theta: the origin. vectors (m, P), as `measure.top_eigenvalues(..., return_vectors=True)` gives
    them. By definition.

    Example:
        >>> top = measure.top_eigenvalues(risk, theta, k=2, return_vectors=True, seed=0)
        >>> axes = plane.eigenvectors(theta, torch.as_tensor(top.eigenvector.values))
        >>> tuple(axes.directions.shape), abs(axes.largest_cosine) < 1e-6
        ((2, 83), True)
    """
    if vectors.ndim != 2:
        raise LandscapeError(
            f"The eigenvectors have shape {tuple(vectors.shape)}; give a row for each, (m, P)."
        )
    units = _units(vectors)
    if gradient is not None:
        units = units * torch.where(project(units, gradient) < 0, -1.0, 1.0).to(units)[:, None]
    labels = tuple(f"eigenvector {i + 1}" for i in range(len(units)))
    return Plane(theta, units, "eigenvectors", labels)


def gradient(theta: Float[Tensor, "P"], direction: Float[Tensor, "P"]) -> Plane:
    """The line along the normalized gradient; its coordinate is a distance.

    theta: the origin. direction (P,): the gradient, of any length. By definition.

    Example:
        >>> line = plane.gradient(theta, risk.gradient(theta))
        >>> round(float(line.norms[0]), 6)
        1.0
    """
    return Plane(theta, _units(direction[None]), "gradient", ("gradient",))


def perturbations(
    theta: Float[Tensor, "P"],
    named: Mapping[str, Float[Tensor, "P"]],
    *,
    unit: bool = True,
    orthogonalize: bool = False,
) -> Plane:
    """One direction per variant: the loss along what each really perturbs.

    unit: coordinates are distances; False keeps each e as it is, so that theta + e is at 1.
    orthogonalize: Gram-Schmidt in the order given, for a plane of two of them with square axes.
    named: variant -> e (P,). By definition of each variant.

    Example:
        >>> e = torch.as_tensor(risk.gradient(theta))
        >>> line = plane.perturbations(theta, {"sam": 0.1 * e / e.norm()}, unit=False)
        >>> round(float(line.norms[0]), 6), line.labels
        (0.1, ('sam',))
    """
    if orthogonalize and not unit:
        raise LandscapeError("orthogonalize=True gives unit directions; leave unit=True with it.")
    if not named:
        raise LandscapeError("No perturbations were given; name one or more, {'sam': e}.")
    _same_size({"theta": theta, **named})
    rows = torch.stack(list(named.values()))
    details = {"orthogonalized": False, "unit": unit}
    rows = _units(rows) if unit else rows
    plane = Plane(theta, rows, "perturbations", tuple(named), details)
    return orthogonalized(plane) if orthogonalize else plane


def trajectory(checkpoints: Sequence[Float[Tensor, "P"]], *, num_directions: int = 2) -> Plane:
    """Principal directions of w_t - w_T over the checkpoints, origin at the last one, w_T.

    Uncentred SVD, so that the plane holds the origin and explained shares refer to the distances
    from it. Directions are unit vectors, pointing towards the first checkpoint. `details` carries
    explained_share per direction, coordinates (T, m) and the residual distance of every checkpoint.
    Checkpoints that span fewer dimensions (one line: explained_share 1, 0) leave directions that
    are random, orthogonal to the others, and named so.
    num_directions: m. The projection is that of arXiv:1712.09913, section 7.

    Example:
        >>> axes = plane.trajectory([other, (other + theta) / 2, theta], num_directions=1)
        >>> bool(torch.equal(axes.origin, theta))
        True
        >>> round(float(axes.details["explained_share"][0]), 6)
        1.0
    """
    if num_directions < 1 or len(checkpoints) < num_directions + 1:
        raise LandscapeError(
            f"{num_directions} directions asked of {len(checkpoints)} checkpoints; "
            f"give at least {max(num_directions, 1) + 1} checkpoints."
        )
    last = checkpoints[-1]
    if any(w.shape != last.shape for w in checkpoints):
        sizes = ", ".join(str(size) for size in sorted({w.numel() for w in checkpoints}))
        raise LandscapeError(
            f"The checkpoints have {sizes} parameters; give those of one training."
        )
    offsets = torch.stack([w.double() - last.double() for w in checkpoints])
    if not bool(offsets.any()):
        raise LandscapeError(
            f"All {len(checkpoints)} checkpoints are equal; a trajectory needs weights that moved."
        )
    # Snapshot method: the T x T Gram matrix instead of an SVD of T x P.
    values, vectors = torch.linalg.eigh(gram(offsets))
    order = torch.argsort(values, descending=True)[:num_directions]
    axes, labels = _principal(combine(vectors[:, order].T, offsets), float(values.max()) ** 0.5)
    axes = axes * torch.where(project(axes, offsets[0]) < 0, -1.0, 1.0)[:, None]
    coordinates = gram(offsets, axes)
    residual = row_norms(offsets - combine(coordinates, axes))
    details = {
        "explained_share": (values[order] / values.clamp_min(0).sum()).tolist(),
        "coordinates": coordinates.tolist(),
        "residual": residual.tolist(),
    }
    return Plane(last, axes.to(last), "trajectory", labels, details)


def _principal(rows: Tensor, largest: float) -> tuple[Tensor, tuple[str, ...]]:
    """Unit rows, orthogonal; where the trajectory has no further direction, a random one."""
    source = torch.Generator().manual_seed(0)
    units: list[Tensor] = []
    labels = []
    for i, row in enumerate(rows):
        # The Gram matrix squares: below sqrt(eps) of the largest there is only rounding.
        if own := float(norm(row)) > 1e-7 * largest:
            labels.append(f"principal {i + 1}")
        else:
            row = drawn(partial(torch.randn, generator=source, dtype=torch.float64), row)
            labels.append(f"random {i + 1} (the checkpoints span {i})")
        for _ in range(1 if own else 2):
            for other in units:
                row = row - dot(row, other) * other
        units.append(unit(row))
    return torch.stack(units), tuple(labels)


def _units(rows: Float[Tensor, "m P"]) -> Float[Tensor, "m P"]:
    """Rows of length 1; 0 stays 0, which `Plane` refuses by that name."""
    lengths = row_norms(rows).to(rows)[:, None]
    return rows / torch.where(lengths == 0, 1, lengths)


def _same_size(named: Mapping[str, Float[Tensor, "P"]]) -> None:
    if len({each.shape for each in named.values()}) > 1:
        sizes = ", ".join(f"{name} has {each.numel()}" for name, each in named.items())
        raise LandscapeError(
            f"No plane holds models of different sizes ({sizes} parameters); give checkpoints of "
            f"one architecture."
        )
