"""Weights of every kind of file: found by the model's own names, or refused with the reason."""

import argparse
import collections
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from landscape import problems
from landscape.errors import LandscapeError
from landscape.problems import weights_file
from landscape.problems.weights import convert
from landscape.problems.weights_sets import WRAPPERS


def small(seed=0):
    torch.manual_seed(seed)
    layers = {
        "conv": nn.Conv2d(1, 2, 3), "bn": nn.BatchNorm2d(2), "flat": nn.Flatten(),
        "fc": nn.Linear(72, 3),
    }  # fmt: skip
    return nn.Sequential(collections.OrderedDict(layers))


class Tied(nn.Module):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


def state(seed=1, before="", after=None):
    found = small(seed).state_dict()
    return {before + (after(k) if after else k): v for k, v in found.items()}


def loads(tmp_path, content, name="w.pt", **options):
    """Save, load into a model of other weights, and compare with those of seed 1."""
    torch.save(content, tmp_path / name)
    target = small(2)
    report = problems.load_weights(target, tmp_path / name, **options)
    assert same(target, small(1))
    return report


def refused(tmp_path, content, message, model=None, name="w.pt", **options):
    torch.save(content, tmp_path / name)
    target = model or small(2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(LandscapeError, match=message):
        problems.load_weights(target, tmp_path / name, **options)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


NAMES = ["w.pt", "w.pth.tar", "w.t7", "w.bin", "w.model", "w.ckpt", "w", "w.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_known_by_its_content(tmp_path, name):
    assert loads(tmp_path, state(), name).chosen == "."
    save_file(state(), tmp_path / name)
    target = small(2)
    report = problems.load_weights(target, tmp_path / name)
    assert same(target, small(1))
    assert report.num_tensors == len(state())
    assert "no checksum of its own" in str(report)


def test_files_of_before_the_zip_format(tmp_path):
    torch.save({"net": state()}, tmp_path / "w", _use_new_zipfile_serialization=False)
    target = small(2)
    assert problems.load_weights(target, tmp_path / "w").checksum is None
    assert same(target, small(1))


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
@pytest.mark.parametrize("outer", ["", "model.", "backbone.net."])
def test_names_of_wrappers_and_attributes_are_undone(tmp_path, wrapper, outer):
    report = loads(tmp_path, {"state_dict": state(before=f"{outer}{wrapper}.")})
    assert report.chosen == f"state_dict.{outer}{wrapper}"
    assert report.undone == (wrapper,)
    inside = loads(tmp_path, state(after=lambda k: k.replace(".", f".{wrapper}.", 1)))
    assert inside.chosen == "."
    assert inside.undone == (wrapper,)


def test_weights_of_the_plain_model_for_a_wrapped_one(tmp_path):
    torch.save(state(), tmp_path / "w.pt")
    target = small(2)
    problems.load_weights(nn.DataParallel(target), tmp_path / "w.pt")  # on the devices it finds
    assert same(target.cpu(), small(1))


def test_a_module_called_module_is_no_wrapper(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        both = nn.ModuleDict({"module": nn.Linear(2, 2)})
        both.weight, both.bias = nn.Parameter(torch.rand(2, 2)), nn.Parameter(torch.rand(2))
        return both

    torch.save({"state_dict": make(1).state_dict()}, tmp_path / "w.pt")
    target = make(2)
    problems.load_weights(target, tmp_path / "w.pt")
    assert same(target, make(1))


BESIDE = {
    "numpy": {"best": np.float64(0.93), "table": np.arange(3), "flag": np.bool_(True)},
    "arguments": {"args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99))},
    "paths": {"hyper_parameters": {"dir": pathlib.PurePosixPath("somewhere")}},
    "epoch": {"epoch": 90, "arch": "resnet18", "best_acc1": torch.tensor(70.0), "optimizer": {}},
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("key", ["state_dict", "model_state", "whatever.it.is"])
def test_what_lies_beside_the_weights_is_left_out_and_said(tmp_path, kind, key):
    report = loads(tmp_path, {key: state(), **BESIDE[kind]})
    assert report.chosen == key
    assert set(BESIDE[kind]) <= set(report.left_out)
    assert loads(tmp_path, {**state(), **BESIDE[kind]}).chosen == "."


def test_metrics_and_criterion_of_a_lightning_module_are_left_out(tmp_path):
    stored = {**state(before="model."), "criterion.weight": torch.ones(3), "acc.tp": torch.zeros(1)}
    report = loads(tmp_path, {"state_dict": stored, "hyper_parameters": {}})
    assert report.left_out == ("hyper_parameters", "criterion.weight", "acc.tp")


def test_averaged_models(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(small(1))
    assert loads(tmp_path, averaged.state_dict()).left_out == ("n_averaged",)


@pytest.mark.parametrize(
    "content",
    [
        {"model": state(1), "model_ema": state(3)},
        {"state_dict": {**state(1, "model."), **state(3, "ema_model.")}},
        {**state(1), **state(3, "ema.")},
        {"net": state(1), "ema": {"shadow": state(3)}},
        {"model": state(1), "optimizer": {"exp_avg": state(3)}},
    ],
)
def test_raw_weights_are_taken_and_averages_pointed_out(tmp_path, content):
    report = loads(tmp_path, content)
    assert len(report.others) == 1
    assert f"NOT {report.others[0]!r}, which the file also holds" in str(report)
    torch.save(content, tmp_path / "w.pt")
    target = small(2)
    again = problems.load_weights(target, tmp_path / "w.pt", weights_key=report.others[0])
    assert same(target, small(3))
    assert again.others == (report.chosen,)


def test_an_average_alone_is_taken_and_said(tmp_path):
    assert loads(tmp_path, {"model_ema": state(1)}).chosen == "model_ema"


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"student": state(1), "teacher": state(3)}, ["student", "teacher"]),
        ({"best_state_dict": state(3), "state_dict": state(1)}, ["best_state_dict", "state_dict"]),
        ([state(1), state(3)], ["0", "1"]),
        ({**state(1), **state(3, "module.")}, [".", "module"]),
    ],
)  # fmt: skip
def test_several_weights_are_refused_until_one_is_named(tmp_path, content, keys):
    shown = ", ".join(map(repr, keys)).replace(".", r"\.")
    refused(tmp_path, content, f"several weights that fit the model: {shown}.*weights_key")
    for key, seed in zip(keys, (1, 3) if keys[0] != "best_state_dict" else (3, 1), strict=True):
        target = small(2)
        problems.load_weights(target, tmp_path / "w.pt", weights_key=key)
        assert same(target, small(seed))
    refused(tmp_path, content, "no weights of this model under weights_key = 'x'", weights_key="x")


def test_the_same_weights_twice_are_no_ambiguity(tmp_path):
    assert loads(tmp_path, [state(1), state(1)]).others == ("1",)


@pytest.mark.parametrize("left", ["wte.weight", "lm_head.weight"])
def test_tied_names_may_be_left_out(tmp_path, left):
    stored = {k: v for k, v in Tied(1).state_dict().items() if k != left}
    torch.save(stored, tmp_path / "w.pt")
    target = Tied(2)
    assert problems.load_weights(target, tmp_path / "w.pt").tied == (left,)
    assert same(target, Tied(1))
    save_model(Tied(1), str(tmp_path / "w.safetensors"))
    target = Tied(2)
    problems.load_weights(target, tmp_path / "w.safetensors")
    assert same(target, Tied(1))
    assert target.lm_head.weight is target.wte.weight


def test_two_values_for_one_tied_tensor_are_refused(tmp_path):
    stored = {"wte.weight": torch.zeros(7, 4), "lm_head.weight": torch.ones(7, 4)}
    refused(tmp_path, stored, "different values for lm_head.weight and wte.weight", Tied())


def test_batch_counters_may_be_absent_and_statistics_may_not(tmp_path):
    counters = {k: v for k, v in state().items() if "num_batches" not in k}
    torch.save(counters, tmp_path / "w.pt")
    report = problems.load_weights(small(2), tmp_path / "w.pt")
    assert report.absent == ("bn.num_batches_tracked",)
    assert "1 batch counters not in the file" in str(report)
    parameters = {k: v for k, v in counters.items() if "running" not in k}
    refused(tmp_path, parameters, "missing: bn.running_mean.*saved without BatchNorm's statistics")


def test_another_model_is_refused_and_the_model_untouched(tmp_path):
    stored = {**state(), "stem.weight": torch.zeros(2), "fc.bias": torch.zeros(5)}
    del stored["conv.weight"]
    message = (
        r"another model than Sequential \(missing: conv.weight; unexpected: stem.weight; "
        r"other shapes: fc.bias is \(5,\) in the file and \(3,\) in the model\)"
    )
    refused(tmp_path, stored, message)
    refused(tmp_path, {**state(), "fc2.weight": torch.zeros(2)}, "unexpected: fc2.weight")
    refused(tmp_path, {"x": torch.zeros(1)}, "no tensor by a name of the model: it has x where")
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(9)))
    refused(tmp_path, {"0.weight": torch.zeros(1, 1)}, r"missing: .* and \d+ more", many)


def changed(name, make):
    return {k: make(v) if k == name else v for k, v in state().items()}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: (v * 100).to(torch.int8), "fc.weight has torch.int8 values .* torch.float32"),
        (lambda v: v.to(torch.complex64) * (1 + 1j), "fc.weight has torch.complex64 values"),
        (lambda v: v > 0, "fc.weight has torch.bool values"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "fc.weight is quantized"),
        (lambda v: v.to_sparse(), r"fc.weight is a Tensor \(torch.sparse_coo\)"),
        (lambda v: v.index_fill(0, torch.tensor(0), float("nan")), "72 values that are NaN or inf"),
        (lambda v: v.double() * 1e300, "beyond the range of the model's torch.float32"),
    ],
)
def test_values_that_would_become_others_are_refused(tmp_path, make, message):
    refused(tmp_path, changed("fc.weight", make), message)


def test_precisions_are_converted_and_said(tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    torch.save(half, tmp_path / "w.pt")
    target = small(2)
    report = problems.load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target.fc.weight, small(1).fc.weight.half().float())
    assert report.converted == ("8 converted from float16 to float32",)


def test_weights_kept_as_numpy_arrays(tmp_path):
    loads(tmp_path, {"params": {k: v.numpy() for k, v in state().items()}})


def test_nested_tables_instead_of_dotted_names(tmp_path):
    nested = collections.defaultdict(dict)
    for name, value in state().items():
        nested[name.split(".")[0]][name.split(".")[1]] = value
    loads(tmp_path, {"params": dict(nested)})


def shards(folder, save, suffix):
    folder.mkdir()
    names = list(state())
    files = {f"model-0000{i}-of-00002.{suffix}": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in files.items():
        save({k: state()[k] for k in part}, folder / file)
    table = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    path = folder / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(("save", "suffix"), [(save_file, "safetensors"), (torch.save, "bin")])
def test_sharded_checkpoints_by_index_or_folder(tmp_path, save, suffix):
    index = shards(tmp_path / "m", save, suffix)
    for path in (index, index.parent):
        target = small(2)
        report = problems.load_weights(target, path)
        assert same(target, small(1))
        assert report.sha256 == weights_file.digest(path)
    with pytest.raises(LandscapeError, match="one shard of several: give the index"):
        problems.load_weights(small(2), index.parent / f"model-00001-of-00002.{suffix}")
    before = weights_file.digest(index)
    save({k: v + 1 for k, v in state(3).items()}, index.parent / f"model-00002-of-00002.{suffix}")
    assert weights_file.digest(index) != before
    (index.parent / f"model-00002-of-00002.{suffix}").unlink()
    with pytest.raises(LandscapeError, match="which is not beside it; copy all shards"):
        problems.load_weights(small(2), index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map":{}}', "needs a table weight_map"),
        ('{"weight_map":{"a":"../b.bin"}}', "no file beside it"),
        ('{"weight_map":{"a":"/etc/passwd"}}', "no file beside it"),
        ('{"weight_map":{"a":3}}', "no file beside it"),
        ("[1]", "needs a table weight_map"),
        ('{"weight_map"', "not whole JSON"),
    ],
)
def test_indexes_that_lead_nowhere(tmp_path, text, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(LandscapeError, match=message):
        problems.load_weights(small(), path)


class Payload:
    """What a hostile file holds: a call that leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_never_run(tmp_path, zipped):
    content = {"state_dict": state(), "x": Payload(str(tmp_path / "trace"))}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    message = "Python objects beside tensors .*nothing of it was run.*--trust-pickle [0-9a-f]{64}"
    with pytest.raises(LandscapeError, match=message):
        problems.load_weights(small(), tmp_path / "w.pt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("call", [eval, exec, getattr, __import__, pickle.loads, np.load, open])
def test_functions_are_never_called(tmp_path, call):
    class Calls:
        def __reduce__(self):
            return call, ("1",)

    torch.save({"state_dict": state(), "x": Calls()}, tmp_path / "w.pt")
    with pytest.raises(LandscapeError, match="nothing of it was run"):
        problems.load_weights(small(), tmp_path / "w.pt")


def test_a_whole_model_is_converted_where_its_hash_is_typed_in(tmp_path):
    path, target = tmp_path / "whole.pt", tmp_path / "w.safetensors"
    torch.save(small(1), path)
    with pytest.raises(LandscapeError, match=r"torch.nn.modules.container.Sequential"):
        problems.load_weights(small(), path)
    with pytest.raises(LandscapeError, match=r"another file\. It was not opened"):
        convert(path, target, trust_pickle="0" * 64)
    convert(path, target, trust_pickle=weights_file.digest(path))
    model = small(2)
    report = problems.load_weights(model, target)
    assert same(model, small(1))
    assert report.checksum == "sha256"


def test_files_that_are_no_weights(tmp_path):
    def refuses(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LandscapeError, match=message):
            problems.load_weights(small(), tmp_path / name)

    with pytest.raises(LandscapeError, match=r"absent\.pt does not exist"):
        problems.load_weights(small(), tmp_path / "absent.pt")
    with pytest.raises(LandscapeError, match=r"folder without model\.safetensors"):
        problems.load_weights(small(), tmp_path)
    with pytest.raises(LandscapeError, match=r"cannot be opened|does not exist"):
        problems.load_weights(small(), "a\0b")
    refuses("empty.pt", b"", "is empty")
    refuses("w.onnx", b"\x08\x07pytorch", "not a whole weights file")
    refuses("short.safetensors", b"12345", "not a whole safetensors file")
    refuses("page.pt", b"<!DOCTYPE html>", "is a web page and not weights")
    refuses("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    refuses("keras.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file")
    refuses("config.json", b'{"a": 1}', "of JSON only an index")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    refuses("a.npz", (tmp_path / "arrays.npz").read_bytes(), "archive of a.npy, and not of torch")
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        torch.jit.script(small(1)).save(str(tmp_path / "program.pt"))
    refuses("p.pt", (tmp_path / "program.pt").read_bytes(), "a TorchScript program, not weights")
    torch.save(torch.optim.SGD(small().parameters(), lr=0.1).state_dict(), tmp_path / "o.pt")
    refuses("o.pt", (tmp_path / "o.pt").read_bytes(), "the state of an optimizer")


@pytest.mark.parametrize("where", np.linspace(0, 1, 40))
def test_a_changed_bit_of_a_zipped_file_or_of_ours_is_found(tmp_path, where):
    torch.save({"state_dict": state()}, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        content = bytearray((tmp_path / name).read_bytes())
        place = round(where * (len(content) - 1))
        content[place] ^= 1 << (place % 8)
        (tmp_path / name).write_bytes(content)
        target = small(2)
        try:
            problems.load_weights(target, tmp_path / name)
        except LandscapeError:
            assert same(target, small(2))
        else:  # bytes between the members of an archive decide nothing
            assert same(target, small(1))


def test_a_member_marked_as_a_directory_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 38  # external attributes in the directory of the archive
    content[at] |= 0x10
    path.write_bytes(content)
    with pytest.raises(LandscapeError, match=r"is damaged in w/data\.pkl"):
        problems.load_weights(small(), path)


def test_the_expected_hash_is_compared(tmp_path):
    torch.save(state(), tmp_path / "w.pt")
    known = weights_file.digest(tmp_path / "w.pt")
    assert problems.load_weights(small(), tmp_path / "w.pt", sha256=known.upper()).sha256 == known
    with pytest.raises(LandscapeError, match="it is another file"):
        problems.load_weights(small(), tmp_path / "w.pt", sha256="0" * 64)


def test_a_model_without_shapes_yet(tmp_path):
    refused_model = nn.Sequential(nn.LazyLinear(3))
    torch.save(state(), tmp_path / "w.pt")
    with pytest.raises(LandscapeError, match=r"no shape for 0\.weight yet; run one batch"):
        problems.load_weights(refused_model, tmp_path / "w.pt")


def test_a_folder_of_two_files_says_which_was_read(tmp_path):
    first, second = small(1), small(2)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    torch.save(second.state_dict(), tmp_path / "pytorch_model.bin")
    model = small()
    report = problems.load_weights(model, tmp_path)
    assert same(model, first)
    assert report.path == str(tmp_path / "model.safetensors")
    assert "NOT pytorch_model.bin, which lies beside it" in str(report)
    assert report.as_dict()["beside"] == ["pytorch_model.bin"]
    assert problems.load_weights(model, tmp_path / "pytorch_model.bin").beside == ()
    assert same(model, second)


def test_floats_of_8_bits_are_converted_and_said(tmp_path):
    state = small(1).state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "w.pt")
    model = small()
    assert "1 converted from float8_e4m3fn to float32" in str(
        problems.load_weights(model, tmp_path / "w.pt")
    )
    assert torch.equal(model.fc.weight, state["fc.weight"].float())
    state["fc.weight"] = torch.full((3, 72), float("nan")).to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LandscapeError, match=r"fc\.weight has 216 values that are NaN"):
        problems.load_weights(model, tmp_path / "w.pt")
