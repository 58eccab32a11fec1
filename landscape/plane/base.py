"""A line or plane through parameter space, and its file."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.storage import write_atomically


@dataclass(frozen=True)
class Plane:
    """The points origin + sum_i c_i d_i; `directions` is (m, P), `details` says how it was made.

    Coordinates c are in units of the directions as they are (a direction of norm 3 has a unit of
    3).
    origin (P,). kind: what sort of directions, as "random"; labels: a name for each of the m
    directions.

    Example:
        >>> line = plane.interpolation(theta, other)
        >>> bool(torch.equal(line.point(0.0), theta)), line.labels
        (True, ('a to b',))
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
                    f"Direction {label!r} (plane: {self.kind}) has norm {norm}; a direction needs "
                    f"a finite norm above 0, so choose another one."
                )

    @property
    def norms(self) -> Float[Tensor, "m"]:
        """Absolute length of each direction."""
        return vectors.row_norms(self.directions)

    @property
    def cosines(self) -> Float[Tensor, "m m"]:
        """Cosine between each pair of directions."""
        # In float64: lengths in float32 would leave two directions on one line 1e-7 apart.
        products = vectors.gram(self.directions)
        lengths = products.diagonal().sqrt()
        return products / torch.outer(lengths, lengths)

    @property
    def largest_cosine(self) -> float:
        """Largest |cosine| between two of the directions; NaN for one."""
        others = self.cosines.abs().fill_diagonal_(0)
        return float(others.max()) if len(others) > 1 else math.nan

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
        along = vectors.project(basis, offset)
        solved = torch.linalg.lstsq(vectors.gram(basis), along[:, None]).solution[:, 0]
        return solved, float(vectors.norm(vectors.without(offset, basis, solved)))

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


def save(plane: Plane, path: Path) -> Path:
    """Write a plane as .safetensors, whole or not at all; `load` gives the same bits.

    path: a name that ends in .safetensors, which is returned.

    Example:
        >>> plane.save(plane.interpolation(theta, other), Path("line.safetensors")).name
        'line.safetensors'
    """
    tensors = {"origin": plane.origin, "directions": plane.directions}
    words = {"kind": plane.kind, "labels": list(plane.labels), "details": plane.details}
    kept = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
    said = {"plane": json.dumps(words), "sha256": plane.fingerprint()}
    return write_atomically(Path(path), lambda temporary: save_file(kept, temporary, said))


def load(path: Path) -> Plane:
    """Read a plane that `save` wrote; a damaged or foreign file is named.

    path: the .safetensors file.

    Example:
        >>> path = plane.save(plane.interpolation(theta, other), Path("line.safetensors"))
        >>> bool(torch.equal(plane.load(path).directions[0], other - theta))
        True
    """
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
