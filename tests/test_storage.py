"""The disk: names that become folders, refusals in one sentence, what killed writes leave."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape import storage
from landscape.errors import LandscapeError
from landscape.snapshots import RowFile
from landscape.storage.writing import _host

NAMES = (
    "", "..", ".", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 300, "CON", "nul.txt", "Sam", "SAM",
    "sam ", "sam.", "sam|ρ", "\u202eevil", "ä", "ß", "a b", "a  b", "~", "-x", "com1", "💥",
)  # fmt: skip


def test_each_name_is_one_folder_of_its_own_in_any_file_system():
    found = {name: storage.folder_name(name) for name in (*NAMES, "sam", "zsharp", "sam_on")}
    assert found["sam"] == "sam"
    assert found["sam_on"] == "sam_on"
    assert len({folder.casefold() for folder in found.values()}) == len(found)
    for folder in found.values():
        assert storage.is_plain_name(folder)
        assert folder == folder.lower()
        assert len(folder) <= 64
        assert folder.isascii()
        assert folder.partition(".")[0] not in ("con", "nul", "com1")
        assert folder[-1] not in ". "


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "\u202eevil", "x" * 300, 3, None, "a\nb"])
def test_names_that_cannot_be_seen_are_refused(name):
    with pytest.raises(LandscapeError, match=r"\[variants\] name"):
        storage.check_name("[variants] name", name)


@pytest.mark.parametrize("run", ["..", "/etc", "a/b", "", "a\0"])
def test_a_run_stays_in_its_study(tmp_path, run):
    with pytest.raises(LandscapeError, match="would lead out of"):
        storage.StudyFolder(tmp_path).run(run)


SAID = {
    errno.ENOSPC: "The disk is full: .*a.nc was not written",
    errno.EDQUOT: "The disk is full",
    errno.EFBIG: "larger than a file may be here",
    errno.EROFS: "No permission to write .*a.nc",
    errno.EACCES: "No permission to write .*a.nc",
    errno.ENOTDIR: "a.nc cannot be made there: Not a directory",
    errno.ENAMETOOLONG: "a.nc cannot be made there: File name too long",
    errno.EIO: "a.nc was not written: Input/output error",
}


@pytest.mark.parametrize("number", SAID)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: OSError(n, "x"),
        lambda n: OSError(f"Unable to synchronously write (errno = {n}, error message = 'x')"),
        lambda n: RuntimeError(f"Error while serializing: I/O error: x (os error {n})"),
        lambda n: RuntimeError(f"PytorchStreamWriter failed writing file data/0: [Errno {n}] x"),
    ],
)
def test_whatever_library_raised_it_is_one_sentence_with_the_file(tmp_path, number, wrap):
    def write(_):
        raise wrap(number)

    with pytest.raises(LandscapeError, match=SAID[number]):
        storage.write_atomically(tmp_path / "a.nc", write)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_in_a_write_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        storage.write_atomically(tmp_path / "a.nc", lambda _: 1 / 0)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc on this system")
def test_places_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (Path("/proc/x/a.json"), tmp_path / "file" / "a.json"):
        with pytest.raises(LandscapeError, match=r"a\.json cannot be made there|No permission"):
            storage.write_json(path, {"a": 1})
        with pytest.raises(LandscapeError, match=r"a\.jsonl cannot be made there|No permission"):
            storage.append_line(path.with_suffix(".jsonl"), {"a": 1})


def test_a_folder_that_was_taken_away_is_not_begun_anew(tmp_path):
    root = tmp_path / "study"
    root.mkdir()
    lock = storage.StudyFolder(root).lock
    lock.touch()
    storage.hold(lock)
    storage.write_json(root / "runs" / "a" / "spec.json", {})
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.rmdir()
    with pytest.raises(LandscapeError, match="was removed while it was worked in"):
        storage.append_line(root / "runs" / "a" / "history.jsonl", {"epoch": 1})
    assert not root.exists()
    (root / "runs").mkdir(parents=True)  # by a write that was on its way
    rows = RowFile(root / "runs" / "a" / "steps.bin", np.dtype([("checksum", "<u4")]))
    with pytest.raises(LandscapeError, match="was removed while it was worked in"):
        rows.append(np.zeros(1, rows.dtype))
    assert not (root / "runs" / "a").exists()


def test_temporary_files_of_dead_writers_are_swept_and_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / "runs" / "a" / f".landscape-{dead.pid}-{_host()}-x.nc"
    others = [
        tmp_path / f".landscape-1-{_host()}-x.nc", tmp_path / ".landscape-1-elsewhere-x.nc",
        tmp_path / ".hidden", tmp_path / "a.nc",
    ]  # fmt: skip
    left.parent.mkdir(parents=True)
    for path in (left, *others):
        path.write_text("half")
    assert storage.sweep(tmp_path) == [left]
    assert all(path.exists() for path in others)


def test_a_changed_line_is_refused_and_a_torn_last_one_is_not(tmp_path):
    path = tmp_path / "a.jsonl"
    for i in range(3):
        storage.append_line(path, {"epoch": i})
    whole = path.read_bytes()
    for at in range(whole.rindex(b"\n", 0, len(whole) - 1)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(LandscapeError, match=r"line . differs from its checksum"):
            storage.read_lines(path)
        assert len(storage.read_lines(path, on_error="skip")[0]) < 3
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        records, torn = storage.read_lines(path)
        assert [r["epoch"] for r in records] == list(range(whole[:end].count(b"\n")))
        assert torn == (whole[:end][-1:] not in (b"", b"\n"))


def test_a_document_of_older_versions_or_hands_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"format": 1}')
    with pytest.raises(LandscapeError, match="carries no digest"):
        storage.read_json(path)
    path.write_text('{"a": NaN}')
    with pytest.raises(LandscapeError, match="NaN is no number of JSON"):
        storage.read_json(path)
    path.write_text('{"a": 1e999}')
    with pytest.raises(LandscapeError, match="1e999 is no number of JSON"):
        storage.read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(LandscapeError, match="is not valid JSON"):
        storage.read_json(path)


def test_lines_of_another_file_are_no_records(tmp_path):
    path = tmp_path / "sessions.jsonl"
    whole = {"began": 1.0, "seconds": 2, "ended": "done", "note": ""}
    for record in (whole, {"epoch": 1, "seconds": 0.5}, {**whole, "seconds": True}, whole):
        storage.append_line(path, record)
    found, left_out = storage.read_lines(path, on_error="skip", kinds=storage.SESSION)
    assert ([record["began"] for record in found], left_out) == ([1.0, 1.0], 2)
    with pytest.raises(LandscapeError, match="line 2 is of another file"):
        storage.read_lines(path, kinds=storage.SESSION)
