"""What a person or program does to a file that it can read: other values, names, types, shapes.

The digest stays, is dropped, or is made by a rule that is not ours.
"""

import hashlib
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

from landscape import toml

VALUES = (
    None, True, False, 0, -1, 1, 2**63, 1e308, -0.0, 0.5, float("nan"), float("inf"), "", "nan",
    "..", "/etc/passwd", "a" * 300, "\x00", "‮", [], {}, [[]], {"a": {"b": 1}}, [1, "a", None],
    "sgd", "package:callable",
)  # fmt: skip


def tree(value: Any, rng: random.Random) -> Any:
    """The same with one change somewhere in it."""
    inner = isinstance(value, (dict, list)) and value and rng.random() < 0.8
    if not inner:
        return _other(value, rng)
    if isinstance(value, list):
        value = list(value)
        at = rng.randrange(len(value))
        way = rng.randrange(5)
        if way == 0:
            del value[at]
        elif way == 1:
            value.insert(rng.randrange(len(value) + 1), value[at])
        elif way == 2:
            rng.shuffle(value)
        else:
            value[at] = tree(value[at], rng)
        return value
    value = dict(value)
    key = rng.choice(list(value))
    way = rng.randrange(6)
    if way == 0:
        del value[key]
    elif way == 1:
        value[rng.choice((key + "s", key.upper(), "", "x", key[::-1]))] = value.pop(key)
    elif way == 2:
        other = rng.choice(list(value))
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = tree(value[key], rng)
    return value


def _other(value: Any, rng: random.Random) -> Any:
    ways = [lambda: rng.choice(VALUES)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ways += [lambda: value + 1, lambda: -value, lambda: str(value), lambda: [value]]
        ways += [lambda: value * 1.0000001]
    if isinstance(value, str):
        ways += [lambda: value + " ", lambda: value[:-1], lambda: value.upper()]
    return rng.choice(ways)()


def document(path: Path, rng: random.Random) -> None:
    """A JSON document of ours."""
    found = json.loads(path.read_text())
    changed = tree({k: v for k, v in found.items() if k != "landscape_sha256"}, rng)
    if isinstance(changed, dict):
        text = json.dumps(changed, indent=2)
        seals = (found.get("landscape_sha256"), None, hashlib.sha256(text.encode()).hexdigest(), 1)
        seal = rng.choice(seals)
        changed |= {} if seal is None else {"landscape_sha256": seal}
    path.write_text(json.dumps(changed, indent=rng.choice((None, 2))))


def plain_json(path: Path, rng: random.Random) -> None:
    """JSON of others."""
    path.write_text(json.dumps(tree(json.loads(path.read_text()), rng)))


def lines(path: Path, rng: random.Random) -> None:
    """Lines of JSON."""
    found = path.read_text().splitlines()
    at, way = rng.randrange(len(found)), rng.randrange(5)
    if way == 0:
        del found[at]
    elif way == 1:
        found.insert(rng.randrange(len(found) + 1), found[at])
    elif way == 2:
        rng.shuffle(found)
    else:
        changed = tree(json.loads(found[at]), rng)
        if way == 3 and isinstance(changed, dict):
            changed.pop("crc32", None)
        found[at] = json.dumps(changed)
    path.write_text("\n".join(found) + rng.choice(("\n", "\n", "")))


def array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """The same numbers in another type or shape, or other numbers."""
    values = np.array(values)
    way = rng.randrange(7)
    if way == 0:
        return values.astype(rng.choice((np.float64, np.float32, np.int64, np.uint8, "U8")))
    if way == 1:
        return values.T
    if way == 2:
        return values.reshape(-1)
    if way == 3 and values.dtype.kind == "f" and values.size:
        values.flat[rng.randrange(values.size)] = np.nan
        return values
    if way == 4:
        return values[..., :-1] if values.ndim else values[None]
    if way == 5 and values.size and values.dtype.kind in "fiu":
        values.flat[rng.randrange(values.size)] += 1
        return values
    return values[::-1] if values.ndim else values + 1 if values.dtype.kind in "fiu" else values


def table(named: dict[str, Any], rng: random.Random, change: Any) -> dict[str, Any]:
    """Named values with one renamed, lost, exchanged or changed."""
    named = dict(named)
    key, other, way = rng.choice(list(named)), rng.choice(list(named)), rng.randrange(5)
    if way == 0:
        del named[key]
    elif way == 1:
        named[rng.choice((key + "_", "x", key.upper()))] = named.pop(key)
    elif way == 2:
        named[key], named[other] = named[other], named[key]
    else:
        named[key] = change(named[key], rng)
    return named


def npz(path: Path, rng: random.Random) -> None:
    """An archive of numpy."""
    with np.load(path) as held:
        found = {key: held[key] for key in held}
    with path.open("wb") as handle:
        np.savez(handle, **table(found, rng, array))


def _tensor(value: Any, rng: random.Random) -> Any:
    if isinstance(value, torch.Tensor):
        changed = array(value.numpy(), rng)
        return (
            torch.from_numpy(np.ascontiguousarray(changed))
            if changed.dtype.kind in "fiub"
            else value
        )
    if isinstance(value, dict) and value:
        return table(value, rng, _tensor)
    return tree(value, rng)


def pt(path: Path, rng: random.Random) -> None:
    """A file of torch.save."""
    found = torch.load(path, weights_only=False)
    torch.save(table(found, rng, _tensor), path)


def safetensors(path: Path, rng: random.Random) -> None:
    """Weights with their metadata."""
    with safe_open(path, "pt") as file:
        said = file.metadata()
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    changed = {k: v.contiguous().clone() for k, v in table(found, rng, _tensor).items()}
    if said and rng.random() < 0.3:
        said = {k: str(v) for k, v in table(said, rng, tree).items()}
    save_file(changed, path, said)


def netcdf(path: Path, rng: random.Random) -> None:
    """A result, by xarray."""
    ds = xr.load_dataset(path, engine="h5netcdf")
    way, name = rng.randrange(6), rng.choice(list(ds.variables))
    values = ds[name].values
    if way == 0:
        ds = ds.rename({name: f"{name}_"})
    elif way == 1 and name in ds.data_vars:
        ds = ds.drop_vars(name)
    elif way == 2 and len(ds[name].dims) == 2:
        ds[name] = ds[name].T
    elif way == 3:
        attrs = {k: rng.choice((v, "x", 1, "")) for k, v in ds.attrs.items()}
        ds.attrs = attrs if rng.random() < 0.5 else dict(list(attrs.items())[1:])
    elif values.size and values.dtype.kind == "f":
        values = values.copy()
        values.flat[rng.randrange(values.size)] = rng.choice((np.nan, 0.0, 1e30))
        ds[name] = (ds[name].dims, values, ds[name].attrs)
    elif values.dtype.kind in "fiu":
        ds[name] = (ds[name].dims, values.astype(np.float32) + 1, ds[name].attrs)
    path.unlink()
    ds.to_netcdf(path, engine="h5netcdf")


def hdf5(path: Path, rng: random.Random) -> None:
    """A surface of others."""
    with h5py.File(path, "r") as file:
        found = {key: file[key][()] for key in file}
    changed = table(
        found, rng, lambda v, r: array(v, r) if isinstance(v, np.ndarray) else VALUES[4]
    )
    with h5py.File(path, "w") as file:
        for key, value in changed.items():
            file[key] = (
                value.astype("S8") if getattr(value, "dtype", np.dtype("f4")).kind == "U" else value
            )


def study(path: Path, rng: random.Random) -> None:
    """A study file."""
    changed = tree(tomllib.loads(path.read_text()), rng)
    for _ in range(rng.randrange(3)):
        changed = tree(changed, rng)
    try:
        path.write_text(toml.dumps(changed), encoding="utf-8", errors="replace")
    except Exception:  # TOML has no null: nobody can write such a file
        path.write_text(str(changed))


def rows(path: Path, rng: random.Random) -> None:
    """Rows of fixed size: one changed, exchanged with another, lost, or twice."""
    content = path.read_bytes()
    width = len(content) // rng.choice((2, 3, 6))
    found = [content[i : i + width] for i in range(0, len(content), width)]
    at, way = rng.randrange(len(found)), rng.randrange(4)
    if way == 0:
        del found[at]
    elif way == 1:
        found.insert(at, found[at])
    elif way == 2:
        rng.shuffle(found)
    else:
        number = np.frombuffer(found[at][: len(found[at]) // 4 * 4], "<f4").copy()
        number[rng.randrange(len(number))] += 1
        found[at] = number.tobytes()
    path.write_bytes(b"".join(found))
