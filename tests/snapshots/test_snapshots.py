"""Files of a recording: whole rows at any moment, streamed overlaps, damage named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import snapshots, storage, streams
from landscape.errors import LandscapeError
from landscape.snapshots import GRID, Tensors, _common
from landscape.streams import PackedMasks

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


def tensors_of(*sizes):
    names = tuple(f"t{i}" for i in range(len(sizes)))
    return Tensors(names, ("other",) * len(sizes), sizes, (1,) * len(sizes))


def written(folder, tensors, steps, seed=0, density=0.3):
    """A run's folder with random masks at `steps`; returns them by step."""
    random, found = np.random.default_rng(seed), {}
    snapshots.write_tensors(folder / "snapshots", tensors)
    for step in steps:
        masks = {
            n: random.random(s) < density for n, s in zip(tensors.names, tensors.sizes, strict=True)
        }
        found[step] = PackedMasks.of(masks)
        counts = np.full((len(tensors), GRID.bins + 3), step, np.uint32)
        snapshots.write_snapshot(
            folder / "snapshots", step, tensors, zscore_counts=counts, mask_bits=found[step].bits
        )
    return found


def rows_of(tensors, count, first=0):
    rows = np.zeros(count, tensors.row)
    rows["step"] = np.arange(first, first + count)
    rows["epoch"] = 1 + rows["step"] // 10
    rows["rho"] = rows["step"] / 7
    rows["density"] = rows["step"][:, None]
    return rows


# --- rows -------------------------------------------------------------------------------------


def test_rows_come_back(tmp_path):
    tensors = tensors_of(5, 3)
    snapshots.write_tensors(tmp_path / "snapshots", tensors)
    file = snapshots.steps_file(tmp_path / "snapshots", tensors)
    for first in (0, 4, 8):
        file.append(rows_of(tensors, 4, first))
    steps = snapshots.read_steps(tmp_path)
    assert steps.step.tolist() == list(range(12))
    assert steps.epoch.tolist() == [1] * 10 + [2] * 2
    assert steps["rho"].tolist() == [i / 7 for i in range(12)]
    assert steps["density"].shape == (12, 2)
    assert steps.skipped == ()


def test_a_folder_without_a_recording_is_empty(tmp_path):
    assert len(snapshots.read_steps(tmp_path)) == 0
    assert len(snapshots.read_masks(tmp_path)) == 0
    assert snapshots.read_zscores(tmp_path).counts.shape == (0, 0, GRID.bins + 3)
    assert snapshots.read_correctness(tmp_path).correct.shape == (0, 0)
    assert snapshots.read_tensors(tmp_path) is None


def test_cut_anywhere_the_whole_rows_remain_and_appending_goes_on(tmp_path):
    tensors = tensors_of(5)
    snapshots.write_tensors(tmp_path / "snapshots", tensors)
    file = snapshots.steps_file(tmp_path / "snapshots", tensors)
    file.append(rows_of(tensors, 3))
    whole, width = file.path.read_bytes(), tensors.row.itemsize
    for length in range(len(whole)):
        file.path.write_bytes(whole[:length])
        steps = snapshots.read_steps(tmp_path)
        assert steps.step.tolist() == list(range(length // width))
        assert len(steps.skipped) == (length % width > 0)
        file.append(rows_of(tensors, 1, length // width))
        assert snapshots.read_steps(tmp_path).step.tolist() == [*range(1 + length // width)]
        file.path.write_bytes(whole[: length // width * width])
        file.append(rows_of(tensors, 1, 9))
        assert snapshots.read_steps(tmp_path, on_error="skip").step[-1] == 9
        if 0 < length // width < 9:
            with pytest.raises(LandscapeError, match=r"is damaged: \d is followed by 9"):
                snapshots.read_steps(tmp_path)


@pytest.mark.parametrize("at", [0, 3, 4, 60, 200])
def test_any_flipped_bit_of_a_row_is_named(tmp_path, at):
    tensors = tensors_of(5, 4, 3, 2, 1)
    snapshots.write_tensors(tmp_path / "snapshots", tensors)
    file = snapshots.steps_file(tmp_path / "snapshots", tensors)
    file.append(rows_of(tensors, 5))
    content = bytearray(file.path.read_bytes())
    content[2 * tensors.row.itemsize + at % tensors.row.itemsize] ^= 16
    file.path.write_bytes(content)
    with pytest.raises(LandscapeError, match=r"1 of 5 rows differ .* the first is 2. Pass"):
        snapshots.read_steps(tmp_path)
    steps = snapshots.read_steps(tmp_path, on_error="skip")
    assert steps.step.tolist() == [0, 1, 3, 4]
    assert steps.skipped == ("steps.bin: 1 of 5 rows differ from their checksum, the first is 2",)


class HalfFull:
    """A file that takes some bytes and then has no room."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, payload):
        self.file.write(payload[: self.room])
        self.file.flush()
        raise OSError(28, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 10, 130])
def test_a_disk_that_fills_up_in_the_middle_of_an_append(tmp_path, monkeypatch, room):
    tensors = tensors_of(5)
    snapshots.write_tensors(tmp_path / "snapshots", tensors)
    file = snapshots.steps_file(tmp_path / "snapshots", tensors)
    file.append(rows_of(tensors, 2))
    before, opened = file.path.read_bytes(), Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a: HalfFull(opened(self, *a), room))
        with pytest.raises(LandscapeError, match=r"disk is full: .*steps.bin was not written"):
            file.append(rows_of(tensors, 2, 2))
    assert file.path.read_bytes() == before
    file.append(rows_of(tensors, 2, 2))
    assert snapshots.read_steps(tmp_path).step.tolist() == [0, 1, 2, 3]


WRITER = """
import sys
from pathlib import Path
from tests.snapshots.test_snapshots import rows_of, tensors_of
from landscape import snapshots
folder, tensors = Path(sys.argv[1]) / "snapshots", tensors_of(*range(1, 60))
snapshots.write_tensors(folder, tensors)
step = 0
while True:
    snapshots.steps_file(folder, tensors).append(rows_of(tensors, 3, step))
    step += 3
"""


def test_read_while_another_process_writes_and_after_it_was_killed(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, env=environment
    )
    try:
        seen, began = [], time.monotonic()
        while len(seen) < 50 or seen[-1] < 60:
            assert process.poll() is None
            assert time.monotonic() - began < 120
            steps = snapshots.read_steps(tmp_path)  # raises where a row is not whole
            assert steps.step.tolist() == list(range(len(steps)))
            seen.append(len(steps))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert seen == sorted(seen)
    steps = snapshots.read_steps(tmp_path)
    assert len(steps) >= seen[-1]
    assert steps["rho"].tolist() == [i / 7 for i in range(len(steps))]
    snapshots.steps_file(tmp_path / "snapshots", steps.tensors).append(
        rows_of(steps.tensors, 1, len(steps))
    )
    assert snapshots.read_steps(tmp_path).step.tolist() == list(range(len(steps) + 1))


def test_forgetting_what_came_after_a_checkpoint(tmp_path):
    tensors = tensors_of(9)
    written(tmp_path, tensors, (0, 5, 10, 15))
    snapshots.steps_file(tmp_path / "snapshots", tensors).append(rows_of(tensors, 20))
    right = snapshots.correctness_file(tmp_path / "snapshots", 11)
    for epoch in (1, 2):
        right.append(snapshots.correctness_row(right, epoch, np.arange(11) < epoch))
    snapshots.forget_after(tmp_path / "snapshots", epoch=1, step=10)
    assert snapshots.read_steps(tmp_path).step.tolist() == list(range(10))
    assert snapshots.read_masks(tmp_path).steps.tolist() == [0, 5]
    found = snapshots.read_correctness(tmp_path)
    assert found.epochs.tolist() == [1]
    assert found.correct.tolist() == [[True] + [False] * 10]


# --- masks -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    block=st.sampled_from([1, 100, 1 << 20]),
    call=st.sampled_from([2, 4, 64]),
    longest=st.sampled_from([1, 3, 512]),
    seed=st.integers(0, 99),
)
def test_streamed_overlaps_equal_those_in_memory(
    tmp_path_factory, sizes, block, call, longest, seed
):
    folder = tmp_path_factory.mktemp("masks")
    tensors = tensors_of(*sizes)
    packed = written(folder, tensors, (0, 1, 2, 4, 9), seed)
    series = snapshots.read_masks(folder)
    pairs = [(0, 1), (4, 0), (2, 2), (3, 1), (0, 4), (0, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_common, "_BLOCK", block)
        patch.setattr(_common, "_CALL", call * longest)
        patch.setattr(_common, "_SUM", longest)
        found = series.overlap(pairs)
        lags, overlaps = series.lagged([1, 2, 3, 5, 100])
    for i, (a, b) in enumerate(pairs):
        expected = packed[series.steps[a]].overlap(packed[series.steps[b]])
        for part in ("size", "first", "second", "common"):
            assert np.array_equal(getattr(found, part)[i], getattr(expected, part)), part
    expected_lags, expected = streams.persistence(list(packed.items()), [1, 2, 3, 5, 100])
    assert np.array_equal(lags, expected_lags)
    for one, other in zip(overlaps, expected, strict=True):
        assert np.array_equal(one.common, other.common)
        assert np.array_equal(one.first, other.first)


@pytest.mark.parametrize("cores", [1, 3])
def test_full_masks_do_not_overflow_and_threads_change_nothing(tmp_path, monkeypatch, cores):
    # 64 bits in each of 3126 words: beyond a sum of 16 bits.
    tensors = tensors_of(200_001, 9)
    snapshots.write_tensors(tmp_path / "snapshots", tensors)
    counts = np.zeros((2, GRID.bins + 3), np.uint32)
    for step in range(4):
        full = PackedMasks.of({"t0": np.ones(200_001, bool), "t1": np.arange(9) < step})
        snapshots.write_snapshot(
            tmp_path / "snapshots", step, tensors, zscore_counts=counts, mask_bits=full.bits
        )
    monkeypatch.setattr(_common, "usable_cores", lambda: cores)
    found = snapshots.read_masks(tmp_path).overlap([(0, 3), (1, 2), (2, 3), (3, 3)])
    assert found.common.tolist() == [[200_001, 0], [200_001, 1], [200_001, 2], [200_001, 3]]
    assert found.first[:, 1].tolist() == [0, 1, 2, 3]
    assert found.second[:, 1].tolist() == [3, 2, 3, 3]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_files_that_change_while_they_are_compared_are_named(tmp_path, damage):
    written(tmp_path, tensors_of(20, 700), (0, 1, 2))
    series = snapshots.read_masks(tmp_path)
    path = snapshots.snapshot_path(tmp_path / "snapshots", 1)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    said = "No such file" if damage == "gone" else "it is shorter now"
    with pytest.raises(LandscapeError, match=rf"00000001.npz was whole .*{said}"):
        series.overlap([(0, 1)])


def test_a_series_reads_one_snapshot_at_a_time(tmp_path):
    tensors = tensors_of(20, 7)
    packed = written(tmp_path, tensors, (3, 12))
    series = snapshots.read_masks(tmp_path)
    assert [step for step, _ in series] == [3, 12]
    for step, found in series:
        assert np.array_equal(found.bits, packed[step].bits)
        assert found.names == packed[step].names
    assert series.counts().tolist() == [packed[s].counts().tolist() for s in (3, 12)]
    assert (series.kinds, series.ndims) == (("other",) * 2, (1, 1))
    with pytest.raises(LandscapeError, match=r"snapshots 0..2 were asked of 2; use indices 0..1"):
        series.overlap([(0, 2)])


def test_histograms_come_back_on_their_grid(tmp_path):
    tensors = tensors_of(20, 7)
    written(tmp_path, tensors, (3, 12))
    z = snapshots.read_zscores(tmp_path)
    found = z.histogram(1, 0)
    assert found.grid == GRID
    assert (found.below, found.above, found.nan) == (12, 12, 12)
    assert (found.counts == 12).all()


def damage(path, how):
    content = bytearray(path.read_bytes())
    at = content.index(b"mask_bits.npy") + 200
    if how == "flipped":
        content[at] ^= 4
    elif how == "cut":
        content = content[:at]
    elif how == "almost whole":
        content = content[:-1]
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "cut", "almost whole", "empty"])
def test_a_damaged_snapshot_is_named_and_skipped_on_request_only(tmp_path, how):
    tensors = tensors_of(4000, 7)
    packed = written(tmp_path, tensors, (0, 1, 2))
    damage(snapshots.snapshot_path(tmp_path / "snapshots", 1), how)
    with pytest.raises(LandscapeError, match=r"00000001.npz is not a whole snapshot .*on_error="):
        snapshots.read_masks(tmp_path)
    series = snapshots.read_masks(tmp_path, on_error="skip")
    assert series.steps.tolist() == [0, 2]
    assert [text[:32] for text in series.skipped] == ["00000001.npz: not a whole snapsho"[:32]]
    found = series.overlap([(0, 1)])
    assert np.array_equal(found.common[0], packed[0].overlap(packed[2]).common)
    if how != "flipped":
        assert len(snapshots.read_zscores(tmp_path, on_error="skip").steps) == 2
        with pytest.raises(LandscapeError, match="not a whole snapshot"):
            snapshots.read_zscores(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((20, 7, 3), r"t2 \(3 elements\) was added"),
        ((20,), r"t1 \(7 elements\) was removed"),
        ((20, 8), "t1 has 8 elements instead of 7"),
    ],
)
def test_tensors_that_changed_between_snapshots(tmp_path, sizes, said):
    written(tmp_path, tensors_of(20, 7), (0,))
    other = tensors_of(*sizes)
    packed = PackedMasks.of({n: np.ones(s, bool) for n, s in zip(other.names, other.sizes)})
    snapshots.write_snapshot(
        tmp_path / "snapshots", 1, other, mask_bits=packed.bits,
        zscore_counts=np.zeros((len(other), GRID.bins + 3)),
    )  # fmt: skip
    for read in (snapshots.read_masks, snapshots.read_zscores):
        with pytest.raises(LandscapeError, match=rf"00000001.npz is of other tensors .*{said}"):
            read(tmp_path, on_error="skip")
    with pytest.raises(LandscapeError, match=said):
        snapshots.write_tensors(tmp_path / "snapshots", other)


@pytest.mark.parametrize("at", range(0, 34))
def test_any_flipped_byte_of_the_correctness_is_named(tmp_path, at):
    snapshots.write_tensors(tmp_path / "snapshots", tensors_of(5))
    file = snapshots.correctness_file(tmp_path / "snapshots", 11)
    for epoch in (1, 2):
        file.append(snapshots.correctness_row(file, epoch, np.arange(11) < epoch))
    content = bytearray(file.path.read_bytes())
    content[at] ^= 0x40
    file.path.write_bytes(content)
    with pytest.raises(LandscapeError, match=r"correct.bin is damaged: .* on_error='skip'"):
        snapshots.read_correctness(tmp_path)
    found = snapshots.read_correctness(tmp_path, on_error="skip")
    assert len(found.skipped) == 1
    kept = [] if 8 <= at < 16 else [2] if at < 18 else [1]
    assert found.epochs.tolist() == kept
    for length in range(18):  # the first row on its way to the disk
        file.path.write_bytes(content[:length])
        if not 8 <= at < 16:
            assert len(snapshots.read_correctness(tmp_path).correct) == 0


@pytest.mark.parametrize("lost", ["names", "ndims", "unseen"])
def test_names_of_the_tensors_that_are_not_whole(tmp_path, lost):
    snapshots.write_tensors(tmp_path / "snapshots", tensors_of(5, 3))
    path = tmp_path / "snapshots" / "tensors.json"
    known = storage.read_json(path)
    others = [known | {"sizes": [5]}, known | {"sizes": [5, -3]}, known | {"names": [1, 2]}]
    del known[lost]
    for content in (known, *others):
        storage.write_json(path, content)
        with pytest.raises(LandscapeError, match=r"tensors.json is damaged: it needs names, kinds"):
            snapshots.read_steps(tmp_path)


def test_folders_that_are_none_or_one_too_deep_are_named(tmp_path):
    written(tmp_path, tensors_of(20, 7), (3, 12))
    readers = ("read_steps", "read_masks", "read_zscores", "read_correctness")
    for read in (getattr(snapshots, name) for name in readers):
        with pytest.raises(LandscapeError, match=r"There is no folder .*typo; give that of a"):
            read(tmp_path / "typo")
        with pytest.raises(LandscapeError, match="give the folder around it"):
            read(tmp_path / "snapshots")


def test_other_formats_and_choices_are_refused(tmp_path):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "tensors.json").write_text(json.dumps({"names": []}))
    with pytest.raises(LandscapeError, match="recorded in format 1 and this version reads format"):
        snapshots.read_steps(tmp_path)
    for read in (snapshots.read_steps, snapshots.read_masks, snapshots.read_correctness):
        with pytest.raises(LandscapeError, match="on_error='ignore' is unknown; choose one of"):
            read(tmp_path, on_error="ignore")
