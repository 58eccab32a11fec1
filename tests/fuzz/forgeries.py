"""Files that a program wrote which knows the format, and no reader of ours expects.

Each takes what a file held and gives what is written instead; None where it is of another format.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import h5py
import numpy as np
import torch

Forgery = Callable[[bytes, random.Random], bytes | None]

# --- text --------------------------------------------------------------------------------------

NUMBERS = (
    "NaN", "Infinity", "-Infinity", "1e400", "9" * 400, "9" * 5000, "0x10", "1_000", "٣", "true",
    "null", "01", "1.", "+1", ".5", "1e-400", "-0", "18446744073709551616", '"\\ud800"',
    "[" * 500 + "1" + "]" * 500, '{"a":' * 400 + "1" + "}" * 400, '"\\u0000"',
)  # fmt: skip
TOML = (
    "inf", "nan", "1979-05-27T07:32:00Z", "07:32:00", "'''\n\n'''", "{}", "[[]]", "{a={b={c=1}}}",
    "9223372036854775808", "[{}]", '["sgd",["sam"]]', '["sam","sam"]', '"../x"', '"/"', '"~"',
    '"{seed}"', '"%s"', '":"', '"os:system"', '"a.b.c:d"', '"\\n"', '"‮"',
)  # fmt: skip
TABLES = ('"a/b"', '"../x"', '""', '"CON"', '"‮x"', f'"{"x" * 300}"', "x.y", '"\\u0000"', '"sgd"')
_NUMBER = r"(?<![\w\".])-?\d+(\.\d+)?([eE][-+]?\d+)?(?![\w\".])"
_PAIR = r'"(\w+)": ?("[^"]*"|-?[\d.]+)'


def _other(pattern: str, new: Any, content: bytes, rng: random.Random) -> bytes | None:
    text = content.decode("utf-8", "surrogateescape")
    hits = list(re.finditer(pattern, text))
    if not hits:
        return None
    hit = rng.choice(hits)
    put = new(hit) if callable(new) else new
    return (text[: hit.start()] + put + text[hit.end() :]).encode("utf-8", "surrogateescape")


def _text(pattern: str, new: Any) -> Forgery:
    return partial(_other, pattern, new)


def _toml(pattern: str, new: Any) -> Forgery:
    return lambda content, rng: (
        _other(pattern, new, content, rng) if b"[problem]" in content else None
    )


def _name(hit: re.Match[str]) -> str:
    return f'"{hit[1]}": "zzz"' if hit[2][0] == '"' else f'"{hit[1]}": 77'


def _escaped(hit: re.Match[str]) -> str:
    return f'"\\u{ord(hit[1]):04x}{hit[2]}":'


TEXTS: dict[str, Forgery] = {
    **{f"the number {word[:12]}, {len(word)}": _text(_NUMBER, word) for word in NUMBERS},
    "a key twice, the other last": _text(_PAIR, lambda hit: f"{hit[0]}, {_name(hit)}"),
    "a key twice, the other first": _text(_PAIR, lambda hit: f"{_name(hit)}, {hit[0]}"),
    "an escaped key": _text(r'"(\w)(\w+)":', _escaped),
    "a comment": _text(r"\n", "// x\n"),
    "a last comma": _text(r"\}", ",}"),
    **{f"the value {word}": _toml(r"(?<=[a-z] = )[^\n]+", word) for word in TOML},
    **{
        f"a table called {name[:8]}": _toml(r"\[(settings|variants)\.(\w+)\]", f"[settings.{name}]")
        for name in TABLES
    },
    "a table twice": _toml(r"\[grid\]", "[problem]\n[grid]"),
    "tables for a table": _toml(r"\[(\w+)\]", lambda hit: f"[[{hit[1]}]]"),
    "a number and a table": _toml(r"\[measure\]", "measure = 3\n[measure]"),
    "an empty key": _toml(r"\n(\w+) = ", lambda hit: f'\n"" = 1\n{hit[1]} = '),
}

# --- bytes -------------------------------------------------------------------------------------


def _swapped(width: int, content: bytes, rng: random.Random) -> bytes:
    """The other byte order, somewhere."""
    at = rng.randrange(max(1, len(content) // width)) * width
    part = content[at : at + rng.choice((width, 8 * width, len(content)))]
    whole = len(part) // width * width
    turned = b"".join(part[i : i + width][::-1] for i in range(0, whole, width))
    return content[:at] + turned + part[whole:] + content[at + len(part) :]


def _tar(content: bytes, _: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("x")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _begun_twice(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[: len(content) - at]


BYTES: dict[str, Forgery] = {
    **{f"words of {n} turned": partial(_swapped, n) for n in (2, 4, 8)},
    "gzip": lambda content, _: gzip.compress(content),
    "bzip2": lambda content, _: bz2.compress(content),
    "xz": lambda content, _: lzma.compress(content),
    "tar": _tar,
    "UTF-32": lambda content, _: content.decode("latin-1").encode("utf-32"),
    "seven bits": lambda content, _: bytes(byte & 127 for byte in content),
    "as Latin-1 again": lambda content, _: content.decode("latin-1").encode(),
    "old lines of a Mac": lambda content, _: content.replace(b"\n", b"\r"),
    "empty lines": lambda content, _: content.replace(b"\n", b"\n\n"),
    "an empty sector": lambda content, _: content + bytes(512),
    "a byte before": lambda content, _: b" " + content,
    "begun twice": _begun_twice,
}

# --- archives ----------------------------------------------------------------------------------

PACKED = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
NAMED: dict[str, Callable[[str], str]] = {
    "another name": lambda name: name[:-1] + "_", "upper case": str.upper,
    "a way out": lambda name: f"../{name}", "an absolute path": lambda name: f"/{name}",
    "backslashes": lambda name: name.replace("/", "\\"),
}  # fmt: skip
HELD: dict[str, Callable[[bytes], bytes]] = {
    "an empty member": lambda data: b"", "a longer member": lambda data: data + bytes(16),
    "a shorter member": lambda data: data[:-4],
    "another bit": lambda data: data[:-1] + bytes([data[-1] ^ 4]) if data else b"",
}  # fmt: skip
TIMES = ("a member twice", "a member twice, the last changed", "a member less")


def _rezipped(what: str, content: bytes, rng: random.Random) -> bytes | None:
    if content[:2] != b"PK":
        return None
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        infos = old.infolist()
        chosen = rng.choice(infos)
        for info in rng.sample(infos, len(infos)) if what == "another order" else infos:
            name, data = info.filename, old.read(info)
            if info is chosen:
                name, data = NAMED.get(what, str)(name), HELD.get(what, bytes)(data)
                if what == "a member less":
                    continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that are there
                new.writestr(zipfile.ZipInfo(name), data, PACKED.get(what, zipfile.ZIP_STORED))
                if info is chosen and what.startswith("a member twice"):
                    other = bytes(b ^ 1 for b in data) if "changed" in what else data
                    new.writestr(zipfile.ZipInfo(name), other)
        if what == "the old comment":
            new.comment = old.comment
    return buffer.getvalue()


def _resigned(content: bytes, rng: random.Random) -> bytes | None:
    """One bit of a member, its CRC-32 put right in place."""
    if content[:2] != b"PK":
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = rng.choice([info for info in archive.infolist() if info.file_size])
    head = content[info.header_offset : info.header_offset + 30]
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    data = bytearray(content[begin : begin + info.file_size])
    data[rng.randrange(len(data))] ^= 4
    changed = content[:begin] + bytes(data) + content[begin + len(data) :]
    return changed.replace(struct.pack("<I", info.CRC), struct.pack("<I", zlib.crc32(data)))


ZIPS: dict[str, Forgery] = {
    **{f"zip, {what}": partial(_rezipped, what)
       for what in (*PACKED, *NAMED, *HELD, *TIMES, "another order", "the old comment")},
    "zip, a bit and its CRC-32": _resigned,
    "zip behind a script": lambda c, _: b"#!/bin/sh\n" + c if c[:2] == b"PK" else None,
    "zip twice": lambda c, _: c + c if c[:2] == b"PK" else None,
}  # fmt: skip

# --- safetensors -------------------------------------------------------------------------------


HEADS: dict[str, Callable[[dict[str, Any], str, str], None]] = {
    "offsets exchanged": lambda h, a, b: h.update({
        a: {**h[a], "data_offsets": h[b]["data_offsets"]},
        b: {**h[b], "data_offsets": h[a]["data_offsets"]},
    }),
    "overlapping": lambda h, a, b: h[a].update(data_offsets=h[b]["data_offsets"]),
    "beyond the end": lambda h, a, b: h[a]["data_offsets"].__setitem__(1, 10**6),
    "before the beginning": lambda h, a, b: h[a]["data_offsets"].__setitem__(0, -4),
    **{f"of type {kind}": partial(lambda kind, h, a, b: h[a].update(dtype=kind), kind)
       for kind in ("I32", "F64", "BF16", "BOOL", "F8_E4M3", "X9")},
    "transposed": lambda h, a, b: h[a].update(shape=h[a]["shape"][::-1]),
    "flat": lambda h, a, b: h[a].update(shape=[int(np.prod(h[a]["shape"]))]),
    "of a negative size": lambda h, a, b: h[a].update(shape=[-1, *h[a]["shape"]]),
    "of a huge size": lambda h, a, b: h[a].update(shape=[2**62, 4]),
    "of sizes with a point": lambda h, a, b: h[a].update(shape=[*map(float, h[a]["shape"])]),
    "names exchanged": lambda h, a, b: h.update({a: h[b], b: h[a]}),
    "renamed": lambda h, a, b: h.update({f"{a}_": h.pop(a)}),
    "one less": lambda h, a, b: h.pop(a) and None,
    "one more": lambda h, a, b: h.update({"new.w": dict(h[a])}),
    "without metadata": lambda h, a, b: h.pop("__metadata__", None) and None,
    "numbers as metadata": lambda h, a, b: h.update({"__metadata__": {"a": 1, "b": [2]}}),
    "a list as metadata": lambda h, a, b: h.update({"__metadata__": []}),
    "another digest": lambda h, a, b: h.update({"__metadata__": {"landscape_sha256": "0" * 64}}),
}  # fmt: skip


def _head(change: Callable[..., None], content: bytes, rng: random.Random) -> bytes | None:
    try:
        size = struct.unpack("<Q", content[:8])[0]
        head = json.loads(content[8 : 8 + size])
        first, second = rng.sample([key for key in head if key != "__metadata__"], 2)
        change(head, first, second)
    except (ValueError, TypeError, struct.error, KeyError, IndexError, AttributeError):
        return None
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


TENSORS = {f"safetensors, {what}": partial(_head, change) for what, change in HEADS.items()}

# --- HDF5 --------------------------------------------------------------------------------------


def _again(file: h5py.File, name: str, values: Any, **how: Any) -> None:
    del file[name]
    file.create_dataset(name, data=values, **how)


def _values(change: Callable[[np.ndarray], Any], **how: Any) -> Callable[[h5py.File, str], None]:
    return lambda file, name: _again(file, name, change(np.asarray(file[name][()])), **how)


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("/nowhere.h5", "x", (3,))
    del file[name]
    file.create_virtual_dataset(name, layout)


def _external(file: h5py.File, name: str) -> None:
    del file[name]
    place = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(name, (3,), "f8", external=place)


def _note(key: str, value: Any) -> Callable[[h5py.File, str], None]:
    return lambda file, name: file[name].attrs.__setitem__(key, value)


HDF5: dict[str, Callable[[h5py.File, str], Any]] = {
    "an attribute": lambda file, name: file.attrs.__setitem__("x", 1),
    "bytes that are no text": lambda file, name: file.attrs.__setitem__("provenance", b"\xff\xfe"),
    "an attribute less": lambda file, name: file.attrs.__delitem__(next(iter(file.attrs))),
    "another digest": lambda file, name: file.attrs.__setitem__("landscape_sha256", "0" * 64),
    **{f"{key} of {value}": _note(key, value) for key, value in (
        ("scale_factor", 2.0), ("add_offset", 1.0), ("units", "days since 1970-01-01"),
        ("missing_value", 1.0), ("dtype", "bool"), ("coordinates", "alpha"), ("_Unsigned", "true"),
        ("_Encoding", "utf-16"), ("_FillValue", 0),
    )},
    "a group": lambda file, name: file.create_group("sub").create_dataset("y", data=[1]),
    "a link to nothing": lambda file, name: file.__setitem__("l", h5py.SoftLink("/nowhere")),
    "a link to itself": lambda file, name: file.__setitem__("l", h5py.SoftLink("/l")),
    "a link to a file": lambda file, name: file.__setitem__(
        "l", h5py.ExternalLink("/etc/passwd", "/x")),
    "one less": lambda file, name: file.__delitem__(name),
    "one twice": lambda file, name: file.copy(name, f"{name}2"),
    "two names": lambda file, name: file.__setitem__("second", file[name]),
    "the other byte order": _values(lambda v: v.astype(v.dtype.newbyteorder(">"))),
    "halves": _values(lambda v: v.astype("f2")),
    "complex": _values(lambda v: v.astype("c16")),
    "a table": _values(lambda _: np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "an enumeration": _values(lambda _: np.zeros(3, "i1"), dtype=h5py.enum_dtype({"A": 0})),
    "nothing": _values(lambda _: h5py.Empty("f8")),
    "one number": _values(lambda _: 1.0),
    "compressed": _values(np.atleast_1d, compression="gzip"),
    "with Fletcher's checksum": _values(np.atleast_1d, fletcher32=True),
    "a row less": _values(lambda v: v[1:]),
    "rounded": _values(lambda v: v + 1e-7),
    "a bomb": lambda file, name: (
        file.__delitem__(name), file.create_dataset(name, (2**20, 2**20), "f8", chunks=(64, 64))),
    "elsewhere": _external,
    "virtual": _virtual,
}  # fmt: skip


def _hdf5(change: Callable[[h5py.File, str], Any], content: bytes, rng: random.Random) -> Any:
    if content[:4] != b"\x89HDF":
        return None
    buffer = io.BytesIO(content)
    try:
        with h5py.File(buffer, "r+") as file:
            change(file, rng.choice([k for k in file if isinstance(file[k], h5py.Dataset)]))
    except (RuntimeError, TypeError, ValueError, OSError, KeyError, IndexError, StopIteration):
        return None
    return buffer.getvalue()


FILES = {f"HDF5, {what}": partial(_hdf5, change) for what, change in HDF5.items()}

# --- torch -------------------------------------------------------------------------------------


def _view(tensor: torch.Tensor) -> torch.Tensor:
    room = torch.zeros(tensor.numel() + 7, dtype=tensor.dtype)
    room[3 : 3 + tensor.numel()] = tensor.flatten()
    return room[3 : 3 + tensor.numel()].view(tensor.shape)


STORED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a view": _view,
    "transposed twice": lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
    "one number for all": lambda t: t.flatten()[:1].expand(t.numel()).view(t.shape),
    "half": lambda t: t.half(), "double": lambda t: t.double(), "whole numbers": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64), "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr() if t.ndim == 2 else t,
    "meta": lambda t: t.to("meta"), "a lazy sign": lambda t: torch._neg_view(t),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t]), "arrays": lambda t: t.numpy(),
    "lists": lambda t: t.tolist(), "nothing": lambda t: t[:0], "NaN": lambda t: t * float("nan"),
    "flat": lambda t: t.flatten(), "truth values": lambda t: t.bool(),
}  # fmt: skip


def _stored(change: Callable[[torch.Tensor], Any], content: bytes, _: random.Random) -> Any:
    if content[:2] != b"PK" and content[:1] != b"\x80":
        return None
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), weights_only=False)
            torch.save(_each(found, change), buffer)
    except Exception:  # no file of torch's, or nothing that torch can write
        return None
    return buffer.getvalue()


def _each(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return change(value)
    return {k: _each(v, change) for k, v in value.items()} if isinstance(value, dict) else value


class _Runs:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('a payload was run')",))


def _payload(content: bytes, _: random.Random) -> bytes | None:
    if content[:2] != b"PK" and content[:1] != b"\x80":
        return None
    buffer = io.BytesIO()
    torch.save({"state_dict": {"0.weight": _Runs()}}, buffer)
    return buffer.getvalue()


def _payload_in_npz(_: bytes, __: random.Random) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, values=np.array([_Runs()], object), cost=np.float64(1))
    return buffer.getvalue()


TORCH: dict[str, Forgery] = {
    **{f"torch, {what}": partial(_stored, change) for what, change in STORED.items()},
    "torch, a payload": _payload,
    "a pickle with a payload": lambda _, __: pickle.dumps({"0.weight": _Runs()}),
    "an archive of numpy with a payload": _payload_in_npz,
}

FORGERIES = TEXTS | BYTES | ZIPS | TENSORS | FILES | TORCH
# A file of torch has no digest of its own: written anew with other numbers it is another file.
ANEW = frozenset({*TORCH, *(name for name in ZIPS if name.split(", ")[-1] in (*HELD, *TIMES))})
