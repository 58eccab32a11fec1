"""Study files: what they mean, and one clear sentence for each thing they can get wrong."""

import json
import tomllib
from pathlib import Path

import pytest

from landscape import study
from landscape.errors import LandscapeError
from landscape.study.demo import demo_text
from landscape.study.reading import load, parse
from landscape.study.spec import Problem, fingerprint

BASE = """
[training]
epochs = 2
[variants.sam]
rho = 0.2
label = "SAM"
[variants.zs]
recipe = "zsharp"
percentile = 0.9
[grid]
variant = ["sgd", "sam", "zs"]
seed = [0, 1]
"""


def read(text, tmp_path, **more):
    return parse(text, base=tmp_path, **more)


def test_a_grid_is_the_product_of_its_axes_in_the_order_of_the_file(tmp_path):
    plan = read(BASE, tmp_path)
    assert [(r.variant, r.seed) for r in plan.runs] == [
        ("sgd", 0), ("sgd", 1), ("sam", 0), ("sam", 1), ("zs", 0), ("zs", 1),
    ]  # fmt: skip
    zs = plan.runs[-1]
    assert zs.recipe == "zsharp"
    assert (zs.options["percentile"], zs.options["norm_scope"]) == (0.9, "global")
    assert zs.training["epochs"] == 2
    assert zs.training["momentum"] == 0.9
    assert plan.name == tmp_path.name


def test_axes_of_rho_and_training_and_a_variant_without_the_option_meets_it_once(tmp_path):
    text = BASE.replace("seed = [0, 1]", "rho = [0.1, 0.4]\nlr = [0.1, 0.2]")
    plan = read(text, tmp_path)
    assert len(plan.runs) == 2 + 4 + 4
    assert {r.options.get("rho") for r in plan.runs if r.family == "sam"} == {0.1, 0.4}
    assert {r.training["lr"] for r in plan.runs if r.family == "sgd"} == {0.1, 0.2}
    assert {r.labels["rho"] for r in plan.runs if r.family == "sgd"} == {0.0}


AXES = """
[training]
epochs = 1
[variants.sgd]
[variants.sam]
label = "SAM"
[variants.zsharp]
rho = 0.2
[[grid]]
variant = ["sgd", "sam"]
rho = [0.05, 0.1]
lr = [0.01, 0.02]
seed = [0, 1]
[[grid]]
variant = ["zsharp"]
lr = 0.02
"""


def test_each_combination_of_axes_is_a_row_and_what_does_not_vary_names_none(tmp_path):
    plan = read(AXES, tmp_path)
    names = [row.name for row in plan.variants]
    assert names == [
        "sgd lr=0.01", "sgd lr=0.02",
        "sam rho=0.05, lr=0.01", "sam rho=0.1, lr=0.01",
        "sam rho=0.05, lr=0.02", "sam rho=0.1, lr=0.02",
        "zsharp",
    ]  # fmt: skip
    rows = {row.name: row for row in plan.variants}
    assert rows["sam rho=0.1, lr=0.02"].label == "SAM, ρ = 0.1, lr = 0.02"
    assert rows["sam rho=0.1, lr=0.02"].family == "sam"
    assert rows["zsharp"].axes == {"rho": 0.2, "lr": 0.02}  # what a partner must agree with
    assert rows["sgd lr=0.01"].axes == {"lr": 0.01}
    for run in plan.runs:
        same = [r for r in plan.runs if r.variant == run.variant]
        assert len({r.seed for r in same}) == len(same)
        assert len({json.dumps([dict(r.options), dict(r.training)]) for r in same}) == 1
    assert [plan.first_seed(r) for r in plan.runs].count(True) == len(names)
    assert all(" " not in run.run_id and "=" not in run.run_id for run in plan.runs)


def test_options_data_model_and_noise_are_axes_too(tmp_path):
    text = """
    [grid]
    variant = ["zsharp"]
    norm_scope = ["global", "tensor"]
    model = ["cnn", "mlp"]
    label_noise = [0, 0.2]
    """
    plan = read(text, tmp_path)
    assert len(plan.variants) == 8
    assert plan.variants[-1].axes == {"label_noise": 0.2, "model": "mlp", "norm_scope": "tensor"}
    assert {r.problem.model for r in plan.runs} == {"cnn", "mlp"}


def test_entries_that_differ_are_rows_and_a_variants_own_training_is_no_axis(tmp_path):
    text = """
    [variants.early]
    recipe = "sgd"
    training.epochs = 3
    [[run]]
    variant = "sam"
    rho = 0.1
    [[run]]
    variant = "sam"
    rho = 0.2
    [[grid]]
    variant = ["sgd", "early"]
    """
    plan = read(text, tmp_path)
    assert [row.name for row in plan.variants] == ["early", "sgd", "sam rho=0.1", "sam rho=0.2"]
    assert plan.variants[0].axes == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant = ['sam']\nrho = [1, 1.0]", "asked for twice.*1 and 1.0 are the same"),
        ("variant = ['sam', 'sam']", "asked for twice"),
        ("variant = ['sam']\nseed = [0, 1, 0]", "'sam', seed 0, setting 'default' is asked for"),
        ("variant = ['sam']\nlr = [1, 1.0]", "asked for twice"),
        ("variant = ['sam']\neps = [0.1, 0.2]", "option of a recipe and of the training"),
    ],
)
def test_a_key_that_occurs_twice_is_refused(text, message, tmp_path):
    with pytest.raises(LandscapeError, match=message):
        read(f"[grid]\n{text}\n", tmp_path)


def test_what_the_page_calls_alike_is_refused(tmp_path):
    """Sentences and figures call a variant by its label, and a setting by its title, alone."""
    two = "[variants.a]\nrecipe = 'sam'\nlabel = 'SAM'\n[variants.b]\nrecipe = 'asam'\n{}\n"
    grid = "[grid]\nvariant = ['a', 'b']\n"
    with pytest.raises(LandscapeError, match=r"'a' and 'b' have the label 'SAM' in common.*own"):
        read(two.format("label = 'SAM'") + grid, tmp_path)
    with pytest.raises(LandscapeError, match="have the label 'b' in common"):
        read(two.format("").replace("'SAM'", "'b'") + grid, tmp_path)
    assert len(read(two.format("label = 'ASAM'") + grid, tmp_path).variants) == 2
    settings = "[settings.x]\ntitle = 'noisy'\n[settings.y]\ntitle = 'noisy'\n"
    with pytest.raises(LandscapeError, match="'x' and 'y' have the title 'noisy' in common"):
        read(settings + "[grid]\nvariant = ['sam']\n", tmp_path)


def test_two_checkpoints_under_one_name_and_seed_are_refused_with_both_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.pt").write_bytes(name.encode())
    entry = "[[run]]\nvariant = 'sam'\nweights = '{}.pt'\n"
    with pytest.raises(LandscapeError, match=r"a.pt and .*b.pt. Give them different seeds"):
        read(entry.format("a") + entry.format("b"), tmp_path)
    plan = read(entry.format("a") + entry.format("b") + "seed = 1\n", tmp_path)
    assert [row.name for row in plan.variants] == ["sam"]


def test_settings_change_problem_and_training(tmp_path):
    text = BASE.replace("[grid]", "[[grid]]\nsetting = ['noisy', 'clean']") + (
        "[settings.noisy]\nlabel_noise = 0.2\ntitle = 'noise'\n"
        "[settings.clean]\ntraining.epochs = 3\n"
    )
    plan = read(text, tmp_path)
    assert len(plan.runs) == 12
    assert {r.problem.label_noise for r in plan.runs if r.setting == "noisy"} == {0.2}
    assert {r.training["epochs"] for r in plan.runs if r.setting == "clean"} == {3}
    assert plan.settings[0].title == "noise"


def test_a_variant_may_have_its_own_training(tmp_path):
    plan = read(BASE.replace("rho = 0.2", "rho = 0.2\ntraining.epochs = 7"), tmp_path)
    assert {r.training["epochs"] for r in plan.runs if r.variant == "sam"} == {7}
    assert {r.training["epochs"] for r in plan.runs if r.variant == "sgd"} == {2}


def test_the_name_of_a_run_hashes_what_decides_its_numbers_and_nothing_else(tmp_path):
    ids = lambda text, **more: [r.run_id for r in read(text, tmp_path, **more).runs]  # noqa: E731
    base = ids(BASE)
    assert base == ids(BASE.replace('label = "SAM"', 'label = "other"'))
    assert base == ids(BASE + "[measure]\nexamples = 100\n")
    assert base == ids(BASE + "[problem]\ndata_dir = 'elsewhere'\n")
    changed = ids(BASE.replace("rho = 0.2", "rho = 0.3"))
    assert [a == b for a, b in zip(base, changed, strict=True)] == [1, 1, 0, 0, 1, 1]
    for other in ("[problem]\nlabel_noise = 0.1\n", "[problem]\ndata_seed = 1\n"):
        assert not set(base) & set(ids(BASE + other))
    assert not set(base) & set(ids(BASE, dtype="float64"))
    assert not set(base) & set(ids(BASE, overrides=["training.lr=0.3"]))


def test_spelling_out_a_default_does_not_make_a_new_run(tmp_path):
    spelled = BASE.replace("percentile = 0.9", "percentile = 0.9\nnorm_scope = 'global'")
    first, second = read(BASE, tmp_path), read(spelled, tmp_path)
    assert [r.run_id for r in first.runs] == [r.run_id for r in second.runs]


def test_a_finished_run_is_named_by_its_weights_and_not_by_the_training_table(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"one")
    (tmp_path / "mine.py").write_text("def make(): pass\n")
    text = '[[run]]\nvariant = "sam"\nseed = 3\nweights = "a.pt"\nmodel = "mine:make"\n'
    run = read(text, tmp_path).runs[0]
    assert run.weights == str(tmp_path / "a.pt")
    assert run.problem == Problem(model="mine:make")
    assert run.labels["lr"] is None
    assert run.run_id == read(text + "[training]\nepochs = 9\n", tmp_path).runs[0].run_id
    (tmp_path / "mine.py").write_text("def make(): return None\n")
    edited = read(text, tmp_path).runs[0].run_id
    assert edited != run.run_id
    (tmp_path / "a.pt").write_bytes(b"two")
    assert read(text, tmp_path).runs[0].run_id not in (edited, run.run_id)


def test_what_is_measured_has_defaults_spelled_out_and_a_key_of_all_that_matters(tmp_path):
    plan = read(BASE + "[measure.top_eigenvalues]\nk = 3\n", tmp_path)
    named = {m.name: m for m in plan.measure.measurements}
    assert named["top_eigenvalues"].options["k"] == 3
    assert named["top_eigenvalues"].options["which"] == "largest"
    assert named["loss_plane"].first_seed_only
    assert not named["top_eigenvalues"].first_seed_only
    other = read(BASE + "[measure]\nexamples = 64\n[measure.top_eigenvalues]\nk = 3\n", tmp_path)
    same = {m.name: m for m in other.measure.measurements}["top_eigenvalues"]
    assert plan.measure.key(named["top_eigenvalues"]) != other.measure.key(same)
    first, second = plan.runs[:2]
    assert "loss_plane" in [m.name for m in plan.measurements_of(first)]
    assert "loss_plane" not in [m.name for m in plan.measurements_of(second)]


def test_without_a_list_the_usual_measurements_are_made_and_a_table_adds_one(tmp_path, monkeypatch):
    from landscape.study import measurements

    plan = read(BASE, tmp_path)
    assert [m.name for m in plan.measure.measurements] == list(measurements.DEFAULT)
    more = {**measurements.RECORDS, "extra": measurements.RECORDS["sharpness"]}
    monkeypatch.setattr(measurements, "RECORDS", more)
    plan = read(BASE + "[measure.extra]\nascent_steps = 3\n[measure.sharpness]\n", tmp_path)
    assert [m.name for m in plan.measure.measurements] == [*measurements.DEFAULT, "extra"]


def test_measurements_can_be_listed(tmp_path):
    plan = read(BASE + '[measure]\nmeasurements = ["generalization"]\n', tmp_path)
    assert [m.name for m in plan.measure.measurements] == ["generalization"]


def test_overrides_win_and_are_kept_in_the_text(tmp_path):
    plan = read(BASE, tmp_path, overrides=["training.epochs=5", "variants.sam.label=plain words"])
    assert plan.runs[0].training["epochs"] == 5
    assert plan.runs[2].label == "plain words"
    again = read(plan.text, tmp_path)
    assert [r.run_id for r in again.runs] == [r.run_id for r in plan.runs]


WRONG = {
    "[training": "not valid TOML",
    BASE + "[trainign]\n": r"no entry 'trainign'. Did you mean 'training'\?",
    BASE.replace("epochs", "epoch"): r"\[training\] has no entry 'epoch'. Did you mean 'epochs'\?",
    BASE.replace("epochs = 2", "epochs = 0"): "epochs=0 was asked; give a whole number >= 1",
    BASE.replace("epochs = 2", "batch_size = 'x'"): "batch_size='x'",
    BASE.replace('"zsharp"', '"zshrap"'): r"recipe: unknown 'zshrap'. Did you mean 'zsharp'\?",
    BASE.replace('"sam", "zs"', '"sma"'): r"variant: unknown 'sma'. Did you mean 'sam'\? Possible:",
    BASE.replace("percentile", "precentile"): r"'precentile'. Did you mean 'percentile'\?",
    BASE.replace("rho = 0.2", "rho = -0.2"): r"\[variants.sam\] rho=-0.2",
    BASE.replace("0.9", "95"): r"percentile=95 is outside \[0, 1\): did you mean percentile=0.95",
    BASE.replace("seed = [0, 1]", "seed = [-1]"): "seed = -1 is not a whole number from 0 to",
    BASE.replace("seed = [0, 1]", "seed = []"): "axis 'seed' is empty",
    BASE.replace("seed = ", "sead = "): r"no axis 'sead'. Did you mean 'seed'\?",
    BASE.replace("seed = [0, 1]", 'setting = "x"'): "setting: unknown 'x'. Possible: default",
    "[training]\nepochs = 1\n": "has no runs; add a .grid. table",
    "[grid]\nseed = [0]\n": r"\[grid\] names no variant",
    BASE + "[problem]\ndata = 'digit'\n": r"data: unknown 'digit'. Did you mean 'digits'\?",
    BASE + "[problem]\nmodel = 'nope:make'\n": "no module 'nope' beside the study file",
    BASE + "[problem]\nmodel = 'resnet19'\n": r"Did you mean 'resnet18'\?.*package.module:callable",
    BASE + "[problem]\nlabel_noise = 2\n": "label_noise = 2 is not a share between 0 and 1",
    BASE + "[problem]\nnoise_kind = 'pink'\n": "noise_kind: unknown 'pink'. Possible: symmetric",
    BASE + "[measure.eigenvalues]\n": "no measurement 'eigenvalues'.*Possible: generalization",
    BASE + "[measure.top_eigenvalues]\nK = 3\n": r"no entry 'K'. Did you mean 'k'\?|'K'",
    BASE + "[measure]\nexamples = 0\n": "examples = 0 is not a whole number from 1 to",
    BASE + "[measure]\nmeasurements = ['x']\n": "measurement: unknown 'x'",
    BASE
    + "[measure]\nmeasurements = ['history']\n[measure.sharpness]\n": "is not in `measurements`",
    BASE + "[measure]\nbn = 'train'\n": "bn: unknown 'train'. Possible: eval, full_batch",
    BASE
    + "[measure.loss_plane]\nfirst_seed_only = 1\n": "first_seed_only = 1 is not true or false",
    BASE + "[measure]\nseed = 'x'\n": "seed = 'x' is not a whole number from 0 to",
    BASE + "[measure.top_eigenvalues]\nk = 0\n": r"top_eigenvalues\] k = 0 is not possible; give",
    BASE + "[measure.top_eigenvalues]\nk = 2.5\n": "k = 2.5 is not a whole number",
    BASE + "[measure.top_eigenvalues]\nwhich = 'top'\n": "which: unknown 'top'. Possible: largest",
    BASE + "[measure.sharpness]\nrho = 0.1\n": r"rho = 0.1 is not a list; write \[0.1\]",
    BASE
    + "[measure.sharpness]\nrho = [0.1, 0]\n": "rho = 0 is not possible; give a number above 0",
    BASE + "[measure.sharpness]\nrho = [0.1, 0.1]\n": "has a value twice",
    BASE + "[measure.sharpness]\nrho = ['a']\n": "rho = 'a' is not a number",
    BASE + "[measure.sharpness]\nrho = []\n": "is empty; give at least one value",
    BASE + "[measure.gradient_zscores]\npercentile = 95\n": "percentile = 95 is not possible",
    BASE
    + "[measure.loss_plane]\nbn = 'train'\n": "bn: unknown 'train'. Possible: eval, full_batch",
    BASE + "[measure.loss_plane]\ntiles = 1\n": "tiles = 1 is not true or false",
    BASE
    + "[measure.mask_overlap]\nvariants = ['zsharpp']\n": "variants: unknown 'zsharpp'. Did you",
    BASE + "[measure.barrier]\nseeds = [-1]\n": "seeds = -1 is not possible; give a number from 0",
    BASE + "[measure.training_curvature]\n": "needs checkpoints of the training, and 'sgd' keeps",
    BASE + "[comparisons]\nmetric = 'accuracy'\n": "metric: unknown 'accuracy'.*test_accuracy",
    BASE
    + "[comparisons]\nreferences = ['asam']\n": "reference: unknown 'asam'. Did you mean 'sam'",
    BASE + "[comparisons]\nquestions = 'why'\n": "a list of tables, in double brackets",
    BASE
    + "[[comparisons.questions]]\nasked = 'Why?'\npairs = [['sam']]\n": "give the question and its",
    BASE + "[[comparisons.questions]]\npairs = [['sam', 'sgd']]\n": "asked = None",
    BASE
    + "[[comparisons.questions]]\nasked = 'Why?'\npairs = [['sam', 'asam']]\n": "unknown 'asam'",
    BASE + "[[comparisons.questions]]\nasked = 'Why?'\npairs = [['sam', 'sam']]\n": "with itself",
    "[[run]]\nseed = 0\n": "number 1 names no variant",
    "[[run]]\nvariant = 'sam'\nweights = 'b.pt'\n": "weights file 'b.pt' does not exist",
    "[[run]]\nvariant = 'sam'\nwieghts = 'b.pt'\n": r"'wieghts'. Did you mean 'weights'\?",
    '[variants.sam]\nrecipe = "none"\nweights = "c/{seed}.pt"\n[grid]\nvariant = "sam"\n': (
        r'has the line weights = "c/{seed}.pt", .* into the \[grid\] that names variant = \["sam"\]'
    ),
    "base = 'beside'\n" + BASE: "base = 'beside' is no folder with its whole path",
    "dtype = 'half'\n" + BASE: "dtype: unknown 'half'. Possible: float32, float64",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: fingerprint(text, length=4))
def test_every_mistake_is_named_with_what_is_possible(text, tmp_path):
    with pytest.raises(LandscapeError, match=WRONG[text]) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training.epochs", "not of the form table.key=value"),
        ("training.lr.deep=1", "not a table of the study file"),
        ("training.lr=fast", "lr='fast'"),
    ],
)
def test_wrong_overrides(line, message, tmp_path):
    with pytest.raises(LandscapeError, match=message):
        read(BASE.replace("epochs = 2", "lr = 0.1"), tmp_path, overrides=[line])


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(LandscapeError, match=r"does not exist. `landscape demo --print-study"):
        load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LandscapeError, match="not a text file"):
        load(tmp_path / "b.toml")
    with pytest.raises(LandscapeError, match="is a folder; give the study file"):
        load(tmp_path)
    (tmp_path / "c.toml").write_text("x = 1\n" + BASE)
    with pytest.raises(LandscapeError, match=r"c.toml: the study file has no entry 'x'"):
        load(tmp_path / "c.toml")


def test_the_demo_is_the_study_that_was_promised(tmp_path):
    plan = read(demo_text(), tmp_path)
    noisy = [r for r in plan.runs if r.setting == "noisy"]
    clean = [r for r in plan.runs if r.setting == "clean"]
    assert len({r.variant for r in noisy}) == 12
    assert len(noisy) == 60
    assert len({r.variant for r in clean}) == 5
    assert len(clean) == 15
    assert {r.problem.label_noise for r in noisy} == {0.2}
    assert {r.problem.label_noise for r in clean} == {0.0}
    assert plan.comparisons.references == ("sgd", "sam")
    assert plan.measure.examples == 256
    json.dumps([r.decisive for r in plan.runs])


def test_questions_are_pairs_of_variants(tmp_path):
    text = BASE + "[[comparisons.questions]]\nasked = 'Does it help?'\npairs = [['sam', 'sgd']]\n"
    (question,) = read(text, tmp_path).comparisons.questions
    assert (question.asked, question.pairs) == ("Does it help?", (("sam", "sgd"),))


def test_the_quick_demo_has_the_radii_of_the_demo():
    whole, quick = tomllib.loads(demo_text()), tomllib.loads(demo_text(quick=True))
    for name, variant in quick["variants"].items():
        assert variant == whole["variants"][name]
    assert quick["training"] == whole["training"]
    assert quick["settings"]["noisy"] == whole["settings"]["noisy"]


def test_public_names():
    assert all(hasattr(study, name) for name in study.__all__)


def test_the_list_of_measurements_is_fresh():
    from landscape.study import measurements

    written = Path(study.__file__).with_name("MEASUREMENTS.md").read_text(encoding="utf-8")
    assert written == measurements.listing(), "run python -m landscape.study.measurements"
