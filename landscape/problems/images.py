"""SVHN from its .mat files; Tiny-ImageNet and ImageNet from their folders of JPEG files."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import LandscapeError

# MD5 of the published files.
SVHN = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_SVHN_SITE = "http://ufldl.stanford.edu/housenumbers/"
_TINY = "tiny-imagenet-200"


class Images:
    """Images decoded when they are asked for: images[indices] is (n, 3, h, w) in [0, 1]."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int], decode: Any) -> None:
        self.paths, self.shape, self.decode = paths, shape, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        found = np.empty((len(indices), *self.shape), np.float32)
        for row, index in enumerate(indices):
            found[row] = _opened(self.paths[index], self.decode)
        return found


def read_svhn(
    data_dir: str | Path | None, *, verify: bool = True
) -> tuple[np.ndarray, np.ndarray, int, int, dict[str, Any]]:
    """Images (n, 3, 32, 32) in [0, 1], labels (n,), how many are test (the last), classes, origin.

    The format of cropped digits: X (32, 32, 3, n) uint8 and y (n, 1), in which 10 is the digit 0.
    """
    root = _root("svhn", data_dir, f"{_SVHN_SITE}train_32x32.mat and test_32x32.mat")
    images, labels, md5 = [], [], {}
    for name, expected in SVHN.items():
        path = root / name
        if not path.is_file():
            raise LandscapeError(f"{root} lacks {name}. Get {_SVHN_SITE}{name}.")
        content = path.read_bytes()
        md5[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if verify and md5[name] != expected:
            raise LandscapeError(
                f"{path} has MD5 {md5[name]} and the published file {expected}: it is damaged or "
                f"another version. Download it again, or read it as it is with verify=False ("
                f"`verify = false` under [problem] of a study)."
            )
        x, y = _mat(path)
        images.append(x)
        labels.append(y)
    x = np.concatenate(images).astype(np.float32) / np.float32(255)
    return x, np.concatenate(labels), len(labels[-1]), 10, {"md5": md5}


def _mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    try:
        found = loadmat(path)
    except Exception as error:  # whatever a damaged file makes of the reader
        raise LandscapeError(f"{path} is no readable .mat file ({error}).") from None
    x, y = found.get("X"), found.get("y")
    good = (
        isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and x.dtype == np.uint8
        and x.shape[:3] == (32, 32, 3) and x.ndim == 4 and y.size == x.shape[3]
    )  # fmt: skip
    if not good:
        raise LandscapeError(
            f"{path} is not SVHN's format of cropped digits: X (32, 32, 3, n) of uint8 and y "
            f"(n, 1) are missing."
        )
    labels = y.reshape(-1).astype(np.int64)
    if labels.min() < 1 or labels.max() > 10:
        raise LandscapeError(f"{path} has labels outside 1 to 10.")
    return x.transpose(3, 2, 0, 1), labels % 10


def read_folders(
    name: str, data_dir: str | Path | None
) -> tuple[Images, np.ndarray, int, int, dict[str, Any]]:
    """Images, labels, number of test images (the last: the published validation), classes, origin.

    "tiny_imagenet": tiny-imagenet-200 as it is unpacked (train/<wnid>/images, val/images with
    val_annotations.txt), 3x64x64. "imagenet": train/<wnid> and val/<wnid> of JPEG files, whose
    shorter side is made 256, bilinear, and whose middle 3x224x224 is taken. Classes are the names
    of the folders of train, sorted.
    """
    if name == "tiny_imagenet":
        root = _root(name, data_dir, f"http://cs231n.stanford.edu/{_TINY}.zip, unpacked,")
        root = root / _TINY if (root / _TINY).is_dir() else root
        train, test, classes = _tiny(root)
        shape, decode = (3, 64, 64), None
    else:
        root = _root(name, data_dir, "ILSVRC2012 (image-net.org), sorted into train/ and val/,")
        classes = _classes(root / "train")
        train = _by_class(root / "train", classes, "")
        test = _by_class(root / "val", classes, "")
        shape, decode = (3, 224, 224), _middle
    if not train or not test:
        raise LandscapeError(f"{root} holds {len(train)} training and {len(test)} other images.")
    every = [*train, *test]
    images = Images([path for path, _ in every], shape, decode)
    labels = np.array([label for _, label in every], np.int64)
    digest = hashlib.sha256("\n".join(f"{p.name} {y}" for p, y in every).encode()).hexdigest()
    return images, labels, len(test), len(classes), {"sha256_of_names_and_labels": digest}


def check_memory(name: str, shape: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse splits that do not fit the memory that is free, as tensors of float32."""
    wanted = 2 * sum(sizes) * int(np.prod(shape)) * 4  # while they are standardized, twice
    free = _free_bytes()
    if free is not None and wanted > free:
        raise LandscapeError(
            f"{name}: splits={tuple(sizes)} of {'x'.join(map(str, shape))} take {wanted / 1e9:.1f} "
            f"GB while they are read, and {free / 1e9:.1f} GB are free; give smaller splits "
            f"(`splits = [train, val, test]` under [problem]), or a loader of your own to "
            f"`EmpiricalRisk`, which reads batch by batch."
        )


def _free_bytes() -> int | None:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _root(name: str, data_dir: str | Path | None, what: str) -> Path:
    if data_dir is None:
        raise LandscapeError(
            f"{name} is not part of this package and no data_dir was given. Get {what} and give "
            f"the folder that holds it as --data-dir."
        )
    root = Path(data_dir)
    if not root.is_dir():
        raise LandscapeError(f"{root} is not a folder; it is to hold {what}.")
    return root


def _classes(folder: Path) -> list[str]:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not found:
        raise LandscapeError(f"{folder} holds no folders of classes.")
    return found


def _by_class(folder: Path, classes: Sequence[str], inner: str) -> list[tuple[Path, int]]:
    odd = sorted({p.name for p in folder.iterdir() if p.is_dir()} - {*classes}) if (
        folder.is_dir()) else ["everything"]  # fmt: skip
    if odd:
        raise LandscapeError(f"{folder} and train/ differ in classes: {', '.join(odd[:5])}.")
    return [
        (Path(entry.path), label)
        for label, name in enumerate(classes)
        if (folder / name / inner).is_dir()
        for entry in sorted(os.scandir(folder / name / inner), key=lambda e: e.name)
        if entry.name.lower().endswith((".jpeg", ".jpg", ".png"))
    ]


def _tiny(root: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]], list[str]]:
    classes = _classes(root / "train")
    number = {name: label for label, name in enumerate(classes)}
    said = root / "val" / "val_annotations.txt"
    if not said.is_file():
        raise LandscapeError(f"{said} is missing: {root} is not {_TINY} as it is unpacked.")
    rows = [line.split("\t") for line in said.read_text().splitlines() if line]
    odd = [row for row in rows if len(row) < 2 or row[1] not in number]
    if odd:
        raise LandscapeError(f"{said} names {odd[0]} which is no class of train/.")
    test = [(root / "val" / "images" / row[0], number[row[1]]) for row in sorted(rows)]
    return _by_class(root / "train", classes, "images"), test, classes


def _middle(image: Any) -> Any:
    """Shorter side 256, and the middle 224 x 224."""
    width, height = image.size
    scale = 256 / min(width, height)
    width, height = max(256, round(width * scale)), max(256, round(height * scale))
    image = image.resize((width, height), resample=2)  # bilinear, with antialiasing
    left, top = (width - 224) // 2, (height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))


def _opened(path: Path, decode: Callable[[Any], Any] | None) -> np.ndarray:
    """(3, h, w) in [0, 1]."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")  # some are grey, some CMYK
            image = image if decode is None else decode(image)
            return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
    except (OSError, ValueError, SyntaxError) as error:
        raise LandscapeError(f"{path} is no readable image ({error}).") from None
