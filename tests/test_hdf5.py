"""HDF5 that hangs the library, reads other files, or fills the memory is refused in a sentence."""

import struct

import h5py
import numpy as np
import pytest

from landscape import results, surfaces
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.storage import open_hdf5


@pytest.fixture
def result(tmp_path):
    variables = {"loss": Variable("alpha", np.arange(3.0), "nats", "Loss")}
    ds = results.make("loss_slice", variables, provenance={"bn": "eval"})
    return results.save(ds, tmp_path / "loss_slice.nc")


def surface(path, **more):
    with h5py.File(path, "w") as file:
        file["xcoordinates"] = np.linspace(-1, 1, 3)
        file["train_loss"] = np.ones(3)
        for name, make in more.items():
            make(file, name)
    return path


def heap(path):
    content = bytearray(path.read_bytes())
    at = content.find(b"GCOL")
    assert at > 0
    return content, at + 16


@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**63, 2**40])
@pytest.mark.parametrize("index", [0, 1])
def test_a_heap_of_texts_that_never_ends_is_refused(index, size, result):
    """HDF5 1.14 walks on by the size that an object states, and by zero for ever."""
    content, first = heap(result)
    if (index, size) == (1, 0):
        size = 2**64 - 1
    struct.pack_into("<HH4xQ", content, first, index, 1, size)
    result.write_bytes(content)
    with pytest.raises(LandscapeError, match=r"its heap at byte \d+ is damaged"):
        results.load(result)


def test_a_zeroed_block_is_refused(result):
    content, first = heap(result)
    content[first : first + 64] = bytes(64)
    result.write_bytes(content)
    with pytest.raises(LandscapeError, match="heap"):
        results.load(result)


def test_numbers_that_look_like_a_heap_are_numbers(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.frombuffer(b"GCOL\x01\0\0\0" + struct.pack("<Q", 2**50), np.uint8)
    with open_hdf5(path) as file:
        assert file["a"].shape == (16,)


def _huge(file, name):
    file.create_dataset(name, (1 << 40,), "f8", chunks=(1 << 20,), compression="gzip")


def _soft(file, name):
    file[name] = h5py.SoftLink("/nowhere")


def _external(file, name):
    file[name] = h5py.ExternalLink("/etc/hosts", "/")


def _elsewhere(file, name):
    file.create_dataset(name, (4,), "u1", external=[("/etc/hosts", 0, 4)])


def _virtual(file, name):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_huge, "would take 8796.1 GB"), (_soft, "is a link"), (_external, "is a link"),
        (_elsewhere, "lie in another file"), (_virtual, "lie in another file"),
    ],
)  # fmt: skip
def test_what_leads_elsewhere_or_fills_the_memory_is_refused(make, said, tmp_path):
    path = surface(tmp_path / "s.h5", test_loss=make)
    with pytest.raises(LandscapeError, match=said):
        surfaces.read_goldstein(path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "empty.nc").touch()
    (tmp_path / "folder.nc").mkdir()
    for name in ("empty.nc", "folder.nc"):
        with pytest.raises(LandscapeError, match="not a whole result file"):
            results.load(tmp_path / name)
    assert surfaces.read_goldstein(surface(tmp_path / "right.h5")).loss.shape == (1, 3)
