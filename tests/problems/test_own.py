"""Users' code and weights: found, unwrapped, and refused with the reason."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape import problems
from landscape.errors import LandscapeError


def small(seed=0):
    return problems.make_model("cnn", num_classes=10, input_shape=(1, 8, 8), seed=seed)


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/")  # so that changes of sys.path are undone
    (tmp_path / "mine_own.py").write_text(
        "import torch\n"
        "def make(num_classes, width=3):\n    return torch.nn.Linear(width, num_classes)\n"
        "def fixed():\n    return torch.nn.Linear(2, 2)\n"
        "def anything(**options):\n    return options\n"
        "def data(label_noise):\n"
        "    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])\n"
        "    return (x, y), (x, y)\n"
        "number = 3\n"
        "class Box:\n    make = staticmethod(fixed)\n"
    )
    (tmp_path / "mine_broken.py").write_text("1 / 0\n")
    (tmp_path / "mine_needs.py").write_text("import not_there_at_all\n")
    return tmp_path


def test_callables_are_found_in_the_current_folder(here):
    assert problems.import_object("mine_own:fixed")().in_features == 2
    assert problems.import_object("mine_own:Box.make")().in_features == 2


def test_factories_get_the_options_they_name(here):
    options = {"num_classes": 5, "input_shape": (3,), "seed": 0}
    assert problems.make_model("mine_own:make", **options).out_features == 5
    assert problems.make_model("mine_own:fixed", **options).out_features == 2
    with pytest.raises(LandscapeError, match="mine_own:anything returned dict"):
        problems.make_model("mine_own:anything", **options)
    assert problems.load_data("mine_own:data").num_classes == 2


def test_own_models_are_seeded(here):
    options = {"num_classes": 5, "input_shape": (3,)}
    first = problems.make_model("mine_own:make", seed=0, **options)
    assert same(first, problems.make_model("mine_own:make", seed=0, **options))
    assert not same(first, problems.make_model("mine_own:make", seed=1, **options))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine_own", "'mine_own' does not name a callable; write 'package.module:callable'"),
        ("mine_absent:make", "No module 'mine_absent' for 'mine_absent:make' in .*; run from"),
        ("mine_own:nothing", "mine_own has no 'nothing'; it has make, fixed, anything"),
        ("mine_own:number", "mine_own:number is a int and cannot be called"),
        ("mine_broken:make", "Importing mine_broken failed: ZeroDivisionError"),
        ("mine_needs:make", "mine_needs needs 'not_there_at_all', which is not installed"),
    ],
)
def test_callables_that_are_not_there(here, spec, message):
    with pytest.raises(LandscapeError, match=message):
        problems.import_object(spec)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weights_of_every_kind(tmp_path, suffix):
    source, target, path = small(1), small(2), tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    report = problems.load_weights(target, path)
    assert same(source, target)
    assert report.wrappers == report.prefixes == report.ignored == ()
    assert report.num_tensors == len(source.state_dict())
    assert len(report.sha256) == 64


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict"])
def test_wrappers_are_undone_and_said(tmp_path, key):
    source, target = small(1), small(2)
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    report = problems.load_weights(target, tmp_path / "w.pt")
    assert same(source, target)
    assert report.wrappers == (key,)
    assert f"found under '{key}'" in str(report)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_are_undone_and_said(tmp_path, prefix):
    source, target = small(1), small(2)
    stored = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({"model": {"state_dict": stored}}, tmp_path / "w.pt")
    report = problems.load_weights(target, tmp_path / "w.pt")
    assert same(source, target)
    assert "".join(report.prefixes) == prefix
    assert f"prefix '{prefix}' removed" in str(report)


def test_prefixes_inside_names_of_partly_compiled_models(tmp_path):
    source, target = small(1), small(2)
    stored = {k.replace(".", "._orig_mod.", 1): v for k, v in source.state_dict().items()}
    torch.save(stored, tmp_path / "w.pt")
    problems.load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_averages_are_used_only_alone(tmp_path):
    source, average, target = small(1), small(3), small(2)
    both = {"state_dict": source.state_dict(), "ema": average.state_dict()}
    torch.save(both, tmp_path / "both.pt")
    report = problems.load_weights(target, tmp_path / "both.pt")
    assert same(source, target)
    assert report.ignored == ("ema",)
    assert "'ema' ignored" in str(report)
    torch.save({"ema": average.state_dict()}, tmp_path / "ema.pt")
    assert problems.load_weights(target, tmp_path / "ema.pt").wrappers == ("ema",)
    assert same(average, target)


def test_batch_counters_may_be_absent(tmp_path):
    source, target = small(1), small(2)
    stored = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(stored, tmp_path / "w.pt")
    report = problems.load_weights(target, tmp_path / "w.pt")
    assert len(report.absent) == 3
    assert "3 batch counters not in the file" in str(report)


def test_another_model_is_refused_and_the_model_untouched(tmp_path):
    target = small(2)
    stored = small(1).state_dict()
    stored["stem.weight"] = stored.pop("conv1.weight")
    stored["head.bias"] = torch.zeros(3)
    torch.save(stored, tmp_path / "w.pt")
    message = (
        r"another model than Sequential \(missing: conv1.weight; unexpected: stem.weight; "
        r"other shapes: head.bias is \(3,\) in the file and \(10,\) in the model\)"
    )
    with pytest.raises(LandscapeError, match=message):
        problems.load_weights(target, tmp_path / "w.pt")
    assert same(target, small(2))


def test_long_lists_are_shortened(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    message = r"missing: conv1.weight, .* and \d+ more; unexpected: x"
    with pytest.raises(LandscapeError, match=message):
        problems.load_weights(small(), tmp_path / "w.safetensors")


def test_files_that_are_no_weights(tmp_path):
    def refused(name, message):
        with pytest.raises(LandscapeError, match=message):
            problems.load_weights(small(), tmp_path / name)

    refused("absent.pt", "absent.pt does not exist")
    (tmp_path / "w.onnx").write_bytes(b"")
    refused("w.onnx", "ends in '.onnx'; weights are read from")
    (tmp_path / "broken.safetensors").write_bytes(b"12345")
    refused("broken.safetensors", "not a whole safetensors file")
    (tmp_path / "broken.pt").write_bytes(b"12345")
    refused("broken.pt", "broken.pt is not a whole weights file|broken.pt holds Python objects")
    torch.save(small().state_dict(), tmp_path / "w.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-500])
    refused("cut.pt", "cut.pt is not a whole weights file")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    refused("module.pt", r"holds Python objects .* not run. Save model.state_dict\(\)")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "none.pt")
    refused("none.pt", r"holds no weights \(epoch, lr\); they are looked for")
