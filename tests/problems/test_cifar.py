"""CIFAR archives in their true format, small; and that nothing in them is run."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from landscape import problems
from landscape.errors import LandscapeError
from landscape.problems.cifar import ARCHIVES, FILES, FOLDERS


def python2_string(raw: bytes) -> bytes:
    """A BINSTRING opcode, as Python 2 wrote its byte strings."""
    return b"T" + len(raw).to_bytes(4, "little") + raw


def python2_batch(pixels: np.ndarray, labels: list[int], label_key: bytes) -> bytes:
    """The bytes that Python 2's cPickle wrote, protocol 2, for {'data': array, 'labels': list}."""
    dtype = (
        b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R(K\x03"
        + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )  # fmt: skip
    shape = b"(" + b"".join(b"M" + int(s).to_bytes(2, "little") for s in pixels.shape) + b"t"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + python2_string(b"b") + b"\x87R(K\x01" + shape + dtype + b"\x89"
        + python2_string(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}("
        + python2_string(b"data")
        + array
        + python2_string(label_key)
        + numbers
        + b"u."
    )


def python3_batch(pixels: np.ndarray, labels: list[int], label_key: bytes) -> bytes:
    return pickle.dumps({b"data": pixels, label_key: labels}, protocol=2)


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def parts(name: str, write) -> dict[str, bytes]:
    classes = 10 if name == "cifar10" else 100
    key = b"labels" if name == "cifar10" else b"fine_labels"
    return {
        file: write(images(20, i), [(i + j) % classes for j in range(20)], key)
        for i, file in enumerate(FILES[name])
    }


def write_folder(root, name, write=python2_batch):
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    for file, content in parts(name, write).items():
        (folder / file).write_bytes(content)
    return root


def write_archive(root, name, write=python2_batch):
    with tarfile.open(root / ARCHIVES[name][0], "w:gz") as tar:
        for file, content in parts(name, write).items():
            info = tarfile.TarInfo(f"{FOLDERS[name]}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


SPLITS = {"cifar10": (70, 20, 20), "cifar100": (10, 10, 20)}


@pytest.mark.parametrize("write", [python2_batch, python3_batch])
@pytest.mark.parametrize("store", [write_folder, write_archive])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pixels_and_labels_survive(tmp_path, name, store, write):
    store(tmp_path, name, write)
    data = problems.load_data(name, data_dir=tmp_path, splits=SPLITS[name], verify=False)
    last = len(FILES[name]) - 1
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == (10 if name == "cifar10" else 100)
    mean = torch.tensor(data.provenance["input_mean"]).view(3, 1, 1)
    std = torch.tensor(data.provenance["input_std"]).view(3, 1, 1)
    assert len(mean) == 3
    pixels = ((data.test.x * std + mean) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels.reshape(20, 3072), images(20, last))  # R, G, B planes in order
    assert data.test.y.tolist() == [(last + j) % data.num_classes for j in range(20)]
    assert abs(float(data.train.x.mean())) < 1e-5


def test_the_folder_itself_may_be_given(tmp_path):
    write_folder(tmp_path, "cifar10")
    folder = tmp_path / FOLDERS["cifar10"]
    data = problems.load_data("cifar10", data_dir=folder, splits=(70, 20, 20), verify=False)
    assert len(data.train) == 70


def test_asymmetric_noise_uses_the_usual_pairs(tmp_path):
    write_folder(tmp_path, "cifar10")
    data = problems.load_data(
        "cifar10", data_dir=tmp_path, splits=(80, 20, 20), verify=False, label_noise=1.0,
        noise_kind="asymmetric",
    )  # fmt: skip
    pairs = set(zip(data.train.y_clean.tolist(), data.train.y.tolist()))
    assert (9, 1) in pairs
    assert (0, 0) in pairs
    assert (8, 8) in pairs


def test_absent_data_say_where_to_get_them(tmp_path):
    where = r"cs.toronto.edu/~kriz/cifar-10-python.tar.gz and give the folder .* --data-dir"
    with pytest.raises(LandscapeError, match="cifar10 is not part of this package.*" + where):
        problems.load_data("cifar10")
    with pytest.raises(LandscapeError, match="holds neither cifar-10-python.tar.gz.*" + where):
        problems.load_data("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("store", [write_folder, write_archive])
def test_other_bytes_than_the_published_are_refused(tmp_path, store):
    store(tmp_path, "cifar100")
    with pytest.raises(LandscapeError, match=r"has MD5 .* and the published file .*verify=False"):
        problems.load_data("cifar100", data_dir=tmp_path)


def test_published_bytes_are_accepted(tmp_path, monkeypatch):
    write_archive(tmp_path, "cifar100")
    name = ARCHIVES["cifar100"][0]
    md5 = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, "cifar100", (name, md5))
    data = problems.load_data("cifar100", data_dir=tmp_path, splits=(10, 10, 20))
    assert set(data.provenance["md5"]) == {"train", "test"}


class _Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_a_pickle_is_run(tmp_path):
    folder = write_folder(tmp_path, "cifar100") / FOLDERS["cifar100"]
    trace = tmp_path / "ran"
    (folder / "train").write_bytes(pickle.dumps(_Evil(f"touch {trace}"), protocol=2))
    with pytest.raises(LandscapeError, match=r"asks for \w+.system, .* it was not run"):
        problems.load_data("cifar100", data_dir=tmp_path, verify=False)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole pickle"),
        (b"\x80\x02}q", "is not a whole pickle"),
        (pickle.dumps([1, 2]), "is not a batch of cifar100"),
        (pickle.dumps({b"data": np.zeros((2, 3072))}, protocol=2), "is not a batch of cifar100"),
        (python3_batch(images(1, 0), [100], b"fine_labels"), "label outside 0..99"),
    ],
)
def test_damaged_batches_are_named(tmp_path, content, message):
    folder = write_folder(tmp_path, "cifar100") / FOLDERS["cifar100"]
    (folder / "test").write_bytes(content)
    with pytest.raises(LandscapeError, match=message):
        problems.load_data("cifar100", data_dir=tmp_path, verify=False)


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / ARCHIVES["cifar10"][0]
    path.write_bytes(b"not an archive")
    with pytest.raises(LandscapeError, match="is not a readable archive"):
        problems.load_data("cifar10", data_dir=tmp_path, verify=False)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(LandscapeError, match=r"lacks data_batch_1.*not the python version"):
        problems.load_data("cifar10", data_dir=tmp_path, verify=False)
