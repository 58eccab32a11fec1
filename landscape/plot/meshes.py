"""Surfaces as meshes: GLB for the web, slides and Blender, VTK structured grids for ParaView.

Heights are linear in the loss, and all surfaces of one call share their scale: `Meshes.unit` is the
height of one nat. Every cell is a corner of the mesh, nothing is smoothed or clipped, and where the
loss is not finite there is a hole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import xarray as xr
from matplotlib import colormaps

from landscape.errors import LandscapeError
from landscape.plot import runs, style
from landscape.storage import folder_name, write_atomically

__all__ = ["SUFFIXES", "Mesh", "Meshes", "of", "save"]

SUFFIXES = (".glb", ".vts")
_HIGH = 0.75  # height of the tallest surface, in widths of the plane
_GAP = 0.2  # between surfaces that stand side by side, in widths


@dataclass(frozen=True)
class Mesh:
    """One surface: heights over a grid (a, b), with the loss itself; NaN is a hole."""

    name: str
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    heights: np.ndarray


@dataclass(frozen=True)
class Meshes:
    """Surfaces on one linear scale: height = unit (value - low)."""

    meshes: tuple[Mesh, ...]
    low: float
    high: float
    unit: float

    def colours(self, mesh: Mesh) -> np.ndarray:
        """RGBA (a b, 4), 0 to 255: the colour map of every figure, from low to high."""
        share = (np.nan_to_num(mesh.values, nan=self.low) - self.low) / (self.high - self.low)
        return colormaps[style.SEQUENTIAL](share.ravel(), bytes=True)


def of(ds: xr.Dataset, *, setting: str | None = None, variable: str = "loss") -> Meshes:
    """Surfaces of a loss_plane: the first seed of each variant, all on one scale."""
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require_plane(ds, variable)
    kept = list(runs.variants(ds))
    x, y = ds.alpha.values.astype(float), ds.beta.values.astype(float)
    tables = [
        v.ds.isel(run=0)[variable].transpose("alpha", "beta").values.astype(float) for v in kept
    ]
    finite = np.concatenate([t[np.isfinite(t)] for t in tables])
    if not finite.size:
        raise LandscapeError(f"No cell of {variable} is finite: there is no surface to write.")
    low, high = float(finite.min()), float(finite.max())
    high = high if high > low else low + 1.0
    unit = _HIGH * max(np.ptp(x), np.ptp(y)) / (high - low)
    meshes = tuple(
        Mesh(v.id, x, y, table, np.where(np.isfinite(table), unit * (table - low), np.nan))
        for v, table in zip(kept, tables, strict=True)
    )
    return Meshes(meshes, low, high, float(unit))


def save(meshes: Meshes, path: Path) -> list[Path]:
    """Write .glb, all surfaces side by side, or one .vts each; the same bytes every time."""
    path = Path(path)
    if path.suffix == ".glb":
        return [write_atomically(path, lambda file: file.write_bytes(_glb(meshes)))]
    many = len(meshes.meshes) > 1
    return [
        write_atomically(
            path.with_name(f"{path.stem}.{folder_name(mesh.name)}{path.suffix}") if many else path,
            lambda file, mesh=mesh: file.write_bytes(_vts(meshes, mesh)),
        )
        for mesh in meshes.meshes
    ]


def _faces(mesh: Mesh) -> np.ndarray:
    """Two triangles (n, 3) per square of cells whose corners are all finite, seen from above."""
    rows, columns = mesh.heights.shape
    corner = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (
        corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    )  # fmt: skip
    whole = np.isfinite(mesh.heights.ravel()[np.stack([a, b, c, d])]).all(axis=0)
    return np.concatenate(
        [np.stack(three, axis=-1)[whole] for three in ((a, b, c), (a, c, d))]
    ).astype(np.int64)


def _glb(meshes: Meshes) -> bytes:
    try:
        import trimesh
    except ImportError:
        raise LandscapeError(
            "GLB is written by trimesh, which is not installed; `pip install trimesh`, or write "
            ".vts, which needs nothing."
        ) from None
    scene = trimesh.Scene()
    for place, mesh in enumerate(meshes.meshes):
        width, depth = np.ptp(mesh.x), np.ptp(mesh.y)
        x, y = np.meshgrid(mesh.x + place * (1 + _GAP) * width, mesh.y, indexing="ij")
        # In glTF y is up; the second axis of the plane points away from the viewer.
        corners = np.stack([x, np.nan_to_num(mesh.heights), -y], axis=-1).reshape(-1, 3)
        body = trimesh.Trimesh(
            corners, _faces(mesh), vertex_colors=meshes.colours(mesh), process=False
        )
        body.metadata = {
            "name": mesh.name, "low": meshes.low, "high": meshes.high,
            "height_of_one_unit": meshes.unit, "width": float(width), "depth": float(depth),
        }  # fmt: skip
        scene.add_geometry(body, node_name=mesh.name, geom_name=mesh.name)
    return scene.export(file_type="glb")


def _vts(meshes: Meshes, mesh: Mesh) -> bytes:
    """A StructuredGrid of VTK's XML format; x runs fastest there, as alpha does here."""
    rows, columns = mesh.values.shape
    extent = f"0 {rows - 1} 0 {columns - 1} 0 0"
    x, y = np.meshgrid(mesh.x, mesh.y, indexing="ij")
    root = ET.Element("VTKFile", type="StructuredGrid", version="0.1", byte_order="LittleEndian")
    grid = ET.SubElement(root, "StructuredGrid", WholeExtent=extent)
    said = ET.SubElement(grid, "FieldData")
    for name, number in (("low", meshes.low), ("height_of_one_unit", meshes.unit)):
        _array(said, name, np.array([number]), NumberOfTuples="1")
    piece = ET.SubElement(grid, "Piece", Extent=extent)
    data = ET.SubElement(piece, "PointData", Scalars="loss")
    _array(data, "loss", mesh.values.T)
    # What is no number is hidden: bit 2 of VTK's ghost array says that a point is not there.
    hidden = np.where(np.isfinite(mesh.values), 0, 2).astype(np.uint8)
    _array(data, "vtkGhostType", hidden.T)
    heights = np.nan_to_num(mesh.heights)
    points = np.stack([x, y, heights], axis=-1).transpose(1, 0, 2)
    _array(ET.SubElement(piece, "Points"), "Points", points, NumberOfComponents="3")
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _array(parent: ET.Element, name: str, values: np.ndarray, **more: Any) -> None:
    kind = "UInt8" if values.dtype == np.uint8 else "Float64"
    one = ET.SubElement(parent, "DataArray", type=kind, Name=name, format="ascii", **more)
    one.text = " ".join(_numbers(values))


def _numbers(values: np.ndarray) -> Iterator[str]:
    return (repr(value) for value in np.ravel(values).tolist())
