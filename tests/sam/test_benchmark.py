"""What the benchmark of a step says of peers that are not there, and when a guard is missed."""

import gc
import importlib
import json
import subprocess

import pytest

from benchmarks import interleaved, sam_memory, sam_step
from benchmarks.sam_peers import PEERS, load
from landscape import sam


def test_a_peer_without_a_clone_or_a_package_is_not_run(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    why = {p.name: load(p, {}) for p in PEERS}
    assert all(make is None for make, _ in why.values())
    assert why["davda54/sam"][1] == "no --peer davda54/sam=PATH"
    assert why["pytorch_optimizer SAM"][1] == "pytorch_optimizer is not installed"
    parts = {"optimizer_only": {"relative_to_published": {}, "control_a_a": {"ratio": 1.0},
                                "relative_to_published_without_perturbation_kept": {}}}  # fmt: skip
    rows = sam_step.guards({"resnet20": parts})
    told = {row["what"]: (row["measured"], row["met"]) for row in rows}
    assert told["resnet20: optimizer-only, ours / F-SAM"] == ("not run", None)


def test_a_clone_is_read_without_being_run_and_its_commit_is_told(tmp_path):
    lines = ["raise SystemExit", "class SAM(torch.optim.SGD):", "    'keeps old_p'"]
    (tmp_path / "sam.py").write_text("\n".join(lines), encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    asked = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    make, where = load(PEERS[0], {"davda54/sam": tmp_path})
    assert make is not None
    assert where == f"commit {asked.stdout.strip()}, sam.py"


@pytest.mark.parametrize(("ratio", "met"), [(1.05, True), (1.07, False)])
def test_a_guard_is_met_or_missed_and_a_control_that_is_off_counts(ratio, met):
    found = {"relative_to_published": {"davda54/sam": {"ratio": ratio}},
             "relative_to_published_without_perturbation_kept": {},
             "control_a_a": {"ratio": 0.94}}  # fmt: skip
    rows = {r["what"]: r["met"] for r in sam_step.guards({"cifar_vit": {"optimizer_only": found}})}
    assert rows["cifar_vit: optimizer-only, ours / davda54/sam"] is met
    assert rows["cifar_vit: A/A control, optimizer_only, distance from 1"] is False
    free = sam_step.guards({"vit_ti_fused": {"optimizer_only": found}})
    assert free[0]["at_most"] is None


def test_the_stored_result_says_which_guards_it_misses_and_where_it_was_measured():
    path = sam_step.Path(sam_step.__file__).parent / "results" / "sam_step-cpu.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert {"hardware", "versions", "peers"} <= set(stored)
    assert all("commit" in stored["peers"][p.name] for p in PEERS if p.source == "git")
    assert stored["guards"] == sam_step.guards(stored["networks"])
    guarded = [row for row in stored["guards"] if row["at_most"] is not None]
    assert {row["what"].split(":")[0] for row in guarded} >= set(sam_step.GUARDED)


@pytest.fixture(scope="module")
def few_objects():
    """Nothing that was there before, or that a first step makes, is searched for tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam_memory, "_live", lambda: 0)
        sam_memory.measure(sam.sam(), keep=False)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "asam", "fsam", "sam_on", "zsharp", "lagnp", "sl_sam"])
def test_during_pass_2_a_variant_holds_no_more_than_its_definition(name, few_objects):
    """The weights' copies of the stored table, on a smaller model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam_memory, "SIZE", 1 << 17)
        variant, bound = sam.make(name, sam_memory.VARIANTS[name]), sam_memory.BY_DEFINITION[name]
        bound = sam_memory.perturbed_share(variant) if bound is None else bound
        held = sam_memory.measure(variant, keep=False)["in_pass_2"]
    assert held <= bound + 0.06  # activations of the network and vectors beside the matrices


def test_without_git_or_a_repository_the_commit_is_unknown_and_nothing_is_lost(
    monkeypatch, tmp_path
):
    assert interleaved.commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interleaved.commit_of(tmp_path) == "unknown"
