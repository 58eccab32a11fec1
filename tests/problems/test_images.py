"""SVHN, Tiny-ImageNet and ImageNet in their true formats on the disk, small; damage is named."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from landscape import problems
from landscape.errors import LandscapeError
from landscape.problems import images


def svhn(folder, counts=(30, 20), seed=0):
    """Files of cropped digits, and the pixels and labels that they hold."""
    rng = np.random.default_rng(seed)
    held = []
    for name, n in zip(images.SVHN, counts, strict=True):
        x = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / name, {"X": x, "y": y})
        held.append((x, y))
    return held


def jpeg(path, shape, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(color, int) else "RGB", shape, color).save(path, "JPEG")


def tiny(folder, each=4, colors=((250, 0, 0), (0, 250, 0), (0, 0, 250))):
    """tiny-imagenet-200 with a class per colour."""
    root = folder / "tiny-imagenet-200"
    rows = []
    for label, color in enumerate(colors):
        wnid = f"n0{label}"
        for k in range(each):
            jpeg(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", (64, 64), color)
            jpeg(root / "val" / "images" / f"val_{label}{k}.JPEG", (64, 64), color)
            rows.append(f"val_{label}{k}.JPEG\t{wnid}\t0\t0\t63\t63")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def imagenet(folder, each=4, shape=(300, 280), colors=((250, 0, 0), 120, (0, 0, 250))):
    """train/ and val/ with a class per colour; a number is a grey JPEG."""
    for part in ("train", "val"):
        for label, color in enumerate(colors):
            for k in range(each):
                jpeg(folder / part / f"n0{label}" / f"n0{label}_{k}.JPEG", shape, color)


def test_svhn_is_read_as_it_is_published(tmp_path):
    held = svhn(tmp_path)
    x, y, num_test, classes, origin = images.read_svhn(tmp_path, verify=False)
    assert x.shape == (50, 3, 32, 32)
    assert (num_test, classes) == (20, 10)
    # Pixel (row, column, channel) of the seventh image, and digit 0 where the file says 10.
    assert x[7, 2, 5, 9] == np.float32(held[0][0][5, 9, 2, 7]) / np.float32(255)
    assert list(y[:11]) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert set(origin["md5"]) == set(images.SVHN)
    data = problems.load_data("svhn", data_dir=tmp_path, splits=(20, 10, 20), verify=False)
    assert data.train.x.shape == (20, 3, 32, 32)
    assert float(data.train.x.mean().abs()) < 1e-5


def test_a_changed_svhn_is_refused(tmp_path):
    svhn(tmp_path)
    with pytest.raises(LandscapeError, match=r"has MD5 .* and the published file e26dedcc"):
        images.read_svhn(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(100))
    with pytest.raises(LandscapeError, match=r"no readable .mat file|not SVHN's format"):
        images.read_svhn(tmp_path, verify=False)
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((3, 3)), "y": np.ones(3)})
    with pytest.raises(LandscapeError, match="not SVHN's format of cropped digits"):
        images.read_svhn(tmp_path, verify=False)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(LandscapeError, match=r"lacks test_32x32.mat"):
        images.read_svhn(tmp_path, verify=False)
    with pytest.raises(LandscapeError, match="no data_dir was given"):
        images.read_svhn(None)


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path):
    tiny(tmp_path)
    data = problems.load_data("tiny_imagenet", data_dir=tmp_path, splits=(6, 3, 9))
    assert data.train.x.shape == (6, 3, 64, 64)
    assert data.num_classes == 3
    for split in (data.train, data.val, data.test):
        # The class is the colour that is full, in train and by val_annotations.txt.
        assert split.x.mean((2, 3)).argmax(1).tolist() == split.y.tolist()


def test_imagenet_folders_grey_images_and_the_middle(tmp_path):
    imagenet(tmp_path)
    data = problems.load_data("imagenet", data_dir=tmp_path, splits=(6, 3, 6))
    assert data.test.x.shape == (6, 3, 224, 224)
    assert data.num_classes == 3
    # Halves of two colours: the middle 224 of 512 x 256 begins at column 144 of 512.
    wide = Image.new("RGB", (1024, 512), (250, 0, 0))
    wide.paste((0, 0, 250), (512, 0, 1024, 512))
    path = tmp_path / "halves.png"
    wide.save(path)
    found = images._opened(path, images._middle)
    assert found.shape == (3, 224, 224)
    assert found[0, 0, :110].min() > 0.9
    assert found[2, 0, -110:].min() > 0.9


def test_what_is_no_such_folder_is_named(tmp_path):
    with pytest.raises(LandscapeError, match="no data_dir was given"):
        problems.load_data("imagenet")
    with pytest.raises(LandscapeError, match="holds no folders of classes"):
        problems.load_data("imagenet", data_dir=tmp_path)
    root = tiny(tmp_path)
    (root / "train" / "n00" / "images" / "n00_0.JPEG").write_bytes(b"no image")
    with pytest.raises(LandscapeError, match=r"n00_0.JPEG is no readable image"):
        problems.load_data("tiny_imagenet", data_dir=tmp_path, splits=(9, 3, 9))
    (root / "val" / "val_annotations.txt").write_text("val_00.JPEG\tn77\n")
    with pytest.raises(LandscapeError, match=r"n77.*no class of train"):
        problems.load_data("tiny_imagenet", data_dir=tmp_path, splits=(3, 3, 3))


def test_more_than_the_memory_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(images, "_free_bytes", lambda: 64 << 30)
    with pytest.raises(LandscapeError, match=r"take 1603.* GB .*give smaller splits"):
        images.check_memory("imagenet", (3, 224, 224), (1_231_167, 50_000, 50_000))
    images.check_memory("tiny_imagenet", (3, 64, 64), (9_000, 1_000, 1_000))
