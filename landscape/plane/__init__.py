"""Lines and planes through parameter space: an origin and directions, shared between models.

Random directions come from the seed alone: the same normal draws serve every model of one
architecture and are then normalized to each model's own weights, so that slices of different
variants can be compared (arXiv:1712.09913, section 4).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from landscape import seeds
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.plane.filters import Filters, is_one_d
from landscape.risk import EmpiricalRisk
from landscape.storage import write_atomically

__all__ = [
    "Filters",
    "Plane",
    "eigenvectors",
    "gradient",
    "interpolation",
    "is_one_d",
    "load",
    "perturbations",
    "random",
    "save",
    "shared",
    "through",
    "trajectory",
]

NORMALIZATIONS = ("filter", "layer", "global", "none")
ONE_D = ("zero", "random")


@dataclass(frozen=True)
class Plane:
    """The points origin + sum_i c_i d_i; `directions` is (m, P), `details` says how it was made.

    Coordinates c are in units of the directions as they are (a direction of norm 3 has a unit of
    3).
    """

    origin: Float[Tensor, "P"]
    directions: Float[Tensor, "m P"]
    kind: str
    labels: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or self.directions.shape[1:] != self.origin.shape:
            raise LandscapeError(
                f"Directions of shape {tuple(self.directions.shape)} do not fit an origin of shape "
                f"{tuple(self.origin.shape)}; give directions of shape (m, {self.origin.numel()})."
            )
        for label, norm in zip(self.labels, self.norms.tolist(), strict=True):
            if not norm > 0 or norm == float("inf"):
                raise LandscapeError(
                    f"Direction {label!r} of a {self.kind} plane has norm {norm}; a direction "
                    f"needs a finite norm above 0, so choose another one."
                )

    @property
    def norms(self) -> Float[Tensor, "m"]:
        """Absolute length of each direction."""
        return torch.linalg.vector_norm(self.directions, dim=1)

    @property
    def cosines(self) -> Float[Tensor, "m m"]:
        """Cosine between each pair of directions."""
        # Lengths in float32 would leave two directions on one line 1e-7 apart.
        rows = self.directions.double()
        unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return unit @ unit.T

    def point(self, *coordinates: float) -> Float[Tensor, "P"]:
        """Parameters at the coordinates; fewer coordinates than directions leave the rest at 0."""
        point = self.origin.clone()
        for coordinate, direction in zip(coordinates, self.directions, strict=False):
            # 0 * inf and the sign of zero must not disturb the centre.
            if coordinate != 0:
                point.add_(direction, alpha=float(coordinate))
        return point

    def coordinates(self, theta: Float[Tensor, "P"]) -> tuple[Float[Tensor, "m"], float]:
        """Least-squares coordinates of theta in float64, and its distance from the plane."""
        basis = self.directions.double()
        offset = (theta - self.origin).double()
        solved = torch.linalg.lstsq(basis @ basis.T, (basis @ offset)[:, None]).solution[:, 0]
        return solved, float(torch.linalg.vector_norm(offset - solved @ basis))

    def fingerprint(self) -> str:
        """SHA-256 of origin and directions, 16 hex digits: which plane a figure shows."""
        digest = hashlib.sha256()
        for part in (self.origin, self.directions):
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """What a result must say about its plane."""
        return {
            "plane": self.kind,
            "directions": list(self.labels),
            "plane_sha256": self.fingerprint(),
            **self.details,
        }


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
    """
    _choice("normalize", normalize, NORMALIZATIONS)
    _choice("one_d", one_d, ONE_D)
    if num_directions < 1:
        raise LandscapeError(
            f"num_directions={num_directions} was asked; a slice needs one or more."
        )
    weights = theta if reference is None else reference
    if weights.shape != theta.shape:
        raise LandscapeError(
            f"The reference has {weights.numel()} parameters and the model {theta.numel()}; "
            f"give weights of the same architecture."
        )
    rule = Filters.of(model)
    generator = seeds.generator(seed, purpose="directions")
    rows = torch.empty(num_directions, theta.numel(), dtype=theta.dtype, device=theta.device)
    for row in rows:
        draw = torch.randn(theta.numel(), generator=generator, dtype=torch.float64)
        row.copy_(rule.normalized(draw.to(theta), weights, normalize=normalize, one_d=one_d))
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
    """
    _choice("normalize", normalize, NORMALIZATIONS)
    _choice("one_d", one_d, ONE_D)
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
    }
    return Plane(theta, torch.stack(rows), directions.kind, directions.labels, details)


def save(plane: Plane, path: Path) -> Path:
    """Write a plane as .safetensors, whole or not at all; `load` gives the same bits."""
    tensors = {"origin": plane.origin, "directions": plane.directions}
    words = {"kind": plane.kind, "labels": list(plane.labels), "details": plane.details}
    kept = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
    said = {"plane": json.dumps(words), "sha256": plane.fingerprint()}
    return write_atomically(Path(path), lambda temporary: save_file(kept, temporary, said))


def load(path: Path) -> Plane:
    """Read a plane that `save` wrote; a damaged or foreign file is named."""
    path = Path(path)
    if not path.exists():
        raise LandscapeError(f"{path} does not exist; give a file that plane.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = json.loads(said["plane"])
        found = Plane(
            tensors["origin"], tensors["directions"], words["kind"], tuple(words["labels"]),
            words["details"],
        )  # fmt: skip
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise LandscapeError(
            f"{path} is no whole plane ({type(error).__name__}: {error}); save it again."
        ) from None
    if found.fingerprint() != said.get("sha256"):
        raise LandscapeError(f"{path} does not hold the plane that was saved; save it again.")
    return found


# --- directions that mean something ------------------------------------------------------------


def through(
    a: Float[Tensor, "P"],
    b: Float[Tensor, "P"],
    c: Float[Tensor, "P"],
    *,
    labels: tuple[str, str, str] = ("a", "b", "c"),
) -> Plane:
    """The plane with a at (0, 0), b at (1, 0) and c at (0, 1); its axes are oblique in general."""
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
    """The line with a at 0 and b at 1."""
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
    """
    units = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if gradient is not None:
        units = units * torch.where(units @ gradient < 0, -1.0, 1.0).to(units)[:, None]
    labels = tuple(f"eigenvector {i + 1}" for i in range(len(units)))
    return Plane(theta, units, "eigenvectors", labels)


def gradient(theta: Float[Tensor, "P"], direction: Float[Tensor, "P"]) -> Plane:
    """The line along the normalized gradient; its coordinate is a distance."""
    norm = torch.linalg.vector_norm(direction)
    return Plane(theta, (direction / norm)[None], "gradient", ("gradient",))


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
    """
    if orthogonalize and not unit:
        raise LandscapeError("orthogonalize=True gives unit directions; leave unit=True with it.")
    if not named:
        raise LandscapeError("No perturbations were given; name one or more, {'sam': e}.")
    rows: list[Tensor] = []
    for name, e in named.items():
        row = e / torch.linalg.vector_norm(e) if unit else e
        # Twice: once loses orthogonality when two perturbations nearly agree.
        for _ in range(2 if orthogonalize else 0):
            for other in rows:
                row = row - (row @ other) * other
            left = torch.linalg.vector_norm(row)
            if left < 100 * torch.finfo(row.dtype).eps:
                raise LandscapeError(
                    f"The perturbation {name!r} lies along the ones before it ({', '.join(named)} "
                    f"were given), so that nothing of it is left; leave it out."
                )
            row = row / left
        rows.append(row)
    details = {"orthogonalized": orthogonalize, "unit": unit}
    return Plane(theta, torch.stack(rows), "perturbations", tuple(named), details)


def trajectory(checkpoints: Sequence[Float[Tensor, "P"]], *, num_directions: int = 2) -> Plane:
    """Principal directions of w_t - w_T over the checkpoints, origin at the last one, w_T.

    Uncentred SVD, so that the plane holds the origin and explained shares refer to the distances
    from it. Directions are unit vectors, pointing towards the first checkpoint. `details` carries
    explained_share per direction, coordinates (T, m) and the residual distance of every checkpoint.
    Checkpoints that span fewer dimensions (one line: explained_share 1, 0) leave directions that
    are random, orthogonal to the others, and named so.
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
    values, vectors = torch.linalg.eigh(offsets @ offsets.T)
    order = torch.argsort(values, descending=True)[:num_directions]
    axes, labels = _principal(vectors[:, order].T @ offsets, float(values.max()) ** 0.5)
    axes = axes * torch.where(axes @ offsets[0] < 0, -1.0, 1.0)[:, None]
    coordinates = offsets @ axes.T
    residual = torch.linalg.vector_norm(offsets - coordinates @ axes, dim=1)
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
        if own := float(torch.linalg.vector_norm(row)) > 1e-7 * largest:
            labels.append(f"principal {i + 1}")
        else:
            row = torch.randn(row.shape, generator=source, dtype=torch.float64).to(row)
            labels.append(f"random {i + 1} (the checkpoints span {i})")
        for _ in range(1 if own else 2):
            for other in units:
                row = row - (row @ other) * other
        units.append(row / torch.linalg.vector_norm(row))
    return torch.stack(units), tuple(labels)


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise LandscapeError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")
