"""The study files of the papers' own settings are read, and train on data of their true shape."""

import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import problems
from landscape.study import Options, load, run
from tests.problems.test_cifar import FILES, FOLDERS, images, python3_batch
from tests.problems.test_images import imagenet, svhn, tiny

PAPERS = sorted((Path(__file__).parents[1] / "analysis_scripts" / "papers").glob("*.toml"))
# Of each file the setting that trains every variant; the others train the first and the last.
EVERY_VARIANT = {
    "f_sam": "cifar10", "lagnp": "cifar10_resnet20", "sam_on": "default", "ssam": "cifar10",
    "zsharp": "cifar10_resnet56",
}  # fmt: skip
# A few take minutes of CPU for all files; LANDSCAPE_PAPER_IMAGES=64 is an hour.
IMAGES = int(os.environ.get("LANDSCAPE_PAPER_IMAGES", "8"))
SETTINGS = [(path, setting.name) for path in PAPERS for setting in load(path).settings]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_study_file_is_read_and_names_its_source(path):
    found = load(path)
    assert len({run.seed for run in found.runs}) == 3
    assert "arXiv:" in path.read_text().partition("\nname = ")[0]
    for each in found.settings:
        assert each.problem.data in problems.DATA
        assert each.problem.model in problems.MODELS


def test_zsharps_step_schedule_is_that_of_thirty_epochs_after_the_warmup():
    from landscape.training import TrainingOptions

    path = next(p for p in PAPERS if p.stem == "zsharp")
    options = TrainingOptions(**load(path).runs[0].training)
    rates = [options.learning_rate(epoch * 10, 2000, 10) for epoch in (0, 4, 5, 34, 35, 64, 65)]
    expected = [1e-3 / 50, 1e-3 * 41 / 50, 1e-3, 1e-3, 0.75e-3, 0.75e-3, 0.75**2 * 1e-3]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.fixture
def folder(tmp_path):
    """Not left behind: the checkpoints of all settings take gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "setting"), SETTINGS, ids=lambda each: getattr(each, "stem", each)
)
def test_an_epoch_over_images_of_true_shape(path, setting, folder):
    """Two steps on images of each data set in its published format, of one seed."""
    data = folder / "data"
    data.mkdir()
    for name, key, classes in (("cifar10", b"labels", 10), ("cifar100", b"fine_labels", 100)):
        folder = data / FOLDERS[name]
        folder.mkdir()
        for file in FILES[name]:
            labels = [i % classes for i in range(90)]
            (folder / file).write_bytes(python3_batch(images(90, 0), labels, key))
    svhn(data, counts=(90, 20))
    tiny(data, each=30)
    imagenet(data, each=30)
    runs = load(path).runs
    names = list(dict.fromkeys(run.family or run.variant for run in runs))
    axes = {axis: value for run in runs for axis, value in run.axes.items()}  # one value each
    if EVERY_VARIANT[path.stem] != setting:
        names = [names[0], names[-1]]
    text = tomllib.loads(path.read_text())
    own = text.get("settings", {}).get(setting, {})
    fisher = {k: v["num_samples"] for k, v in text["variants"].items() if "num_samples" in v}
    # What a setting says of its own is above what the file says.
    small = {"splits": [IMAGES, 4, 4], "training.epochs": 1, "training.warmup": 0,
             "training.batch_size": IMAGES // 2}  # fmt: skip
    told = [*own, *(f"training.{key}" for key in own.get("training", {}))]
    overrides = (
        f'grid.setting=["{setting}"]', f"grid.seed=[{runs[0].seed}]", f"grid.variant={names}",
        *(f"{key}={value}" for key, value in small.items() if key != "splits"),
        f"problem.splits={small['splits']}", "problem.verify=false", f"problem.data_dir='{data}'",
        "measure.examples=4", 'measure.measurements=["generalization"]',
        f'comparisons.setting="{setting}"', f'comparisons.references=["{names[0]}"]',
        *(f"grid.{axis}=[{value}]" for axis, value in axes.items()),
        *(f"variants.{key}.num_samples={min(n, IMAGES)}" for key, n in fisher.items()),
        *(f"settings.{setting}.{key}={small[key]}" for key in told if key in small),
    )  # fmt: skip
    torch.set_num_threads(1)
    plan = load(path, overrides=overrides)
    assert {run.family or run.variant for run in plan.runs} == set(names)
    summary = run(plan, folder / "study", Options(device="cpu", workers=0, quiet=True))
    assert summary.failed == {}
    assert len(summary.results["generalization"]["run"]) == len(plan.runs)
