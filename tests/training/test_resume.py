"""Kill -9 at any moment and train again: the same final numbers, bit for bit."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import training
from landscape.storage.writing import _host
from landscape.training import checkpoint, loop
from tests import training_problems as small

ROOT = Path(__file__).parents[2]
EPOCHS = 12


def contents(folder):
    """Everything that a training leaves, but for clock times."""
    history = [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "crc32")}
        for line in (folder / "history.jsonl").read_text().splitlines()
    ]
    arrays = {}
    for path in sorted((folder / "snapshots").glob("*.npz")):
        with np.load(path) as content:
            arrays[path.name] = {k: v.tobytes() for k, v in content.items()}
    arrays["steps"] = (folder / "snapshots" / "steps.bin").read_bytes()
    final = json.loads((folder / "checkpoints" / "final.json").read_text())
    del final["seconds"], final["landscape_sha256"]
    weights = (folder / "checkpoints" / "final.safetensors").read_bytes()
    return history, arrays, final, weights


def start(folder, name):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training_problems", str(folder), name, str(EPOCHS)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "lines"), [("zsharp", 3), pytest.param("ssam_d", 7, marks=pytest.mark.slow)]
)
def test_kill_9_and_again(tmp_path, name, lines):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed, name)
    history = killed / "history.jsonl"
    while process.poll() is None:  # somewhere in the epoch after `lines`
        if history.exists() and history.read_bytes().count(b"\n") >= lines:
            time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (killed / "checkpoints" / "final.json").exists()
    second = start(killed, name)
    _, errors = second.communicate()
    assert second.returncode == 0, errors.decode()
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small.train(whole, name, dropout=0.2, epochs=EPOCHS)
    torch.set_num_threads(torch_threads)
    assert contents(killed) == contents(whole)


class _Killed(BaseException):
    pass


WRITES = (
    "landscape.storage.append_line", "landscape.training.checkpoint.save_weights",
    "landscape.snapshots.write_snapshot", "landscape.snapshots.RowFile.append", "torch.save",
    "landscape.storage.write_json",
)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("target", WRITES)
@pytest.mark.parametrize("name", ["fsam", "random_mask"])
def test_stopped_at_each_kind_of_write(tmp_path, monkeypatch, name, target, after):
    small.train(tmp_path / "whole", name, dropout=0.2)
    original = pkgutil.resolve_name(target)
    calls = []

    def once(*args, **kwargs):
        calls.append(args)
        stop = len(calls) == 2 or target.endswith("write_json")
        if stop and not after:
            raise _Killed
        original(*args, **kwargs)
        if stop:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, once)
        with pytest.raises(_Killed):
            small.train(tmp_path / "stopped", name, dropout=0.2)
    small.train(tmp_path / "stopped", name, dropout=0.2)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_torn_last_line_of_the_history_is_repaired(tmp_path, monkeypatch):
    small.train(tmp_path / "whole")

    def torn(self, epoch):
        if epoch == 2:
            with (self.folder / "history.jsonl").open("ab") as handle:
                handle.write(b'{"epoch": 3, "train_lo')
            raise _Killed
        return original(self, epoch)

    original = loop._Session._epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop._Session, "_epoch", torn)
        with pytest.raises(_Killed):
            small.train(tmp_path / "torn")
    small.train(tmp_path / "torn")
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_training_that_goes_on_with_other_threads_says_so_and_keeps_both(tmp_path, monkeypatch):
    from landscape.training import loop

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.train(tmp_path, epochs=4, progress=stop)
    (first,) = small.train(tmp_path / "whole", epochs=1)[1].arithmetic
    assert first["first_epoch"] == 1
    assert (first["threads"], first["dtype"]) == (torch.get_num_threads(), "float32")
    assert first["torch"] == torch.__version__
    true = loop.arithmetic
    monkeypatch.setattr(
        loop, "arithmetic", lambda device, dtype: true(device, dtype) | {"threads": 64}
    )
    before = torch.get_num_threads()
    with pytest.warns(UserWarning, match=f"after epoch 2 with another .*threads {before} before"):
        _, result = small.train(tmp_path, epochs=4)
    assert [(a["first_epoch"], a["threads"]) for a in result.arithmetic] == [(1, before), (3, 64)]
    again = small.train(tmp_path, epochs=4)[1]  # had ended: nothing is trained, nothing is said
    assert again.arithmetic == result.arithmetic


def test_temporary_files_of_a_killed_write_are_removed(tmp_path):
    def stop(record):
        raise _Killed

    with pytest.raises(_Killed):
        small.train(tmp_path, progress=stop)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = f".landscape-{gone.pid}-{_host()}-abc"
    left = [tmp_path / "snapshots" / f"{name}.npz", tmp_path / "checkpoints" / f"{name}.pt"]
    for path in left:
        path.write_bytes(b"half")
    small.train(tmp_path)
    assert not any(path.exists() for path in left)


def test_progress_that_fails_loses_nothing(tmp_path):
    def interrupt(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.train(tmp_path / "a", progress=interrupt)
    seen = []
    small.train(tmp_path / "a", progress=seen.append)
    assert [r["epoch"] for r in seen] == [3]
    small.train(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_checkpoint_is_read_without_code_and_names_its_weights(tmp_path):
    small.train(tmp_path, keep_every=1)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert state["weights"] == checkpoint.weights_path(tmp_path, 3).name
    assert state["epoch"] == 3
    assert training.optimizer_slots(tmp_path) is not None
