"""What many runs say together: numbers of figures against the statistics that made them."""

import json

import numpy as np
import pytest

from landscape import results, stats
from landscape.plot import drawing as grammar
from landscape.plot import figures, style
from tests.figure_checks import check_figure
from tests.fixtures_results import write_study

RHO = {"sam": 0.1, "zsharp": 0.2, "random_mask": 0.4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    folder = write_study(place, noisy=("sgd", "sam", "zsharp", "random_mask"), clean=(), seeds=4)
    return {path.stem: results.load(path) for path in folder.results.glob("[!.]*.nc")}


def along_rho(ds):
    """The rows sam, zsharp and random_mask as one variant at three radii."""
    ids = ds.variant.values.astype(str)
    family = np.where(np.isin(ids, list(RHO)), "sam", ids)
    axes = [json.dumps({"rho": RHO[i]} if i in RHO else {}) for i in ids]
    return ds.assign_coords(family=("run", family), axes=("run", axes))


def test_along_an_axis_the_dots_are_the_means_over_seeds(data):
    parts = [along_rho(data[name]) for name in ("generalization", "top_eigenvalues")]
    drawn = check_figure("along_axis", *parts, setting="noisy")
    known = stats.along_axis(dict(zip(("generalization", "top_eigenvalues"), parts)), "rho")
    labels = {panel.y.label: panel for panel in drawn.panels}
    assert list(labels) == ["test accuracy", "training loss", "λ₁"]
    for label, name, factor in (("test accuracy", "test_accuracy", 100), ("λ₁", "eigenvalue", 1)):
        (dots,) = [m for m in labels[label].marks
                   if isinstance(m, grammar.Points) and m.name == "SAM"]  # fmt: skip
        np.testing.assert_array_equal(dots.x, [0.1, 0.2, 0.4])
        np.testing.assert_allclose(dots.y, factor * known[name])
        np.testing.assert_allclose(dots.y_low, factor * known[f"{name}_low"])
        assert labels[label].x.label == "ρ"
        assert labels[label].x.log


def test_a_line_along_an_axis_has_the_look_of_its_recipe_and_lines_of_one_recipe_differ(data):
    ds = data["generalization"]
    ids = ds.variant.values.astype(str)
    rows = {"sgd": (0.1, 1), "sam": (0.2, 1), "zsharp": (0.1, 8), "random_mask": (0.2, 8)}
    names = [f"ssam_f rho={rows[i][0]} m={rows[i][1]}" for i in ids]
    grid = ds.assign_coords(
        variant=("run", names),
        label=("run", names),
        family=("run", ["ssam_f"] * len(ids)),
        axes=("run", [json.dumps(dict(zip(("rho", "m"), rows[i]))) for i in ids]),
    )
    drawn = check_figure("along_axis", grid, setting="noisy", axis="rho")
    lines = [m for m in drawn.panels[0].marks if isinstance(m, grammar.Line)]
    dots = [m for m in drawn.panels[0].marks
            if isinstance(m, grammar.Points) and m.name.startswith("SSAM-F")]  # fmt: skip
    color, symbol = style.VARIANTS["ssam_f"]
    assert {m.color for m in (*lines, *dots)} == {color}
    assert [m.dash for m in lines] == ["solid", "dash"]
    assert dots[0].symbol == symbol != dots[1].symbol


def test_without_an_axis_there_is_no_panel(data):
    assert figures.along_axis(data["generalization"], setting="noisy").panels == ()


def test_sharpness_beside_the_gap_has_a_point_for_every_run(data):
    gap = data["generalization"].test_loss - data["generalization"].train_loss
    gap.attrs = {"units": "nats", "long_name": "Test loss minus training loss"}
    data = {**data, "generalization": data["generalization"].assign(loss_gap=gap)}
    parts = [data[n] for n in ("generalization", "top_eigenvalues", "sharpness")]
    drawn = check_figure("sharpness_vs_gap", *parts, setting="noisy")
    dots = [m for m in drawn.panels[0].marks if isinstance(m, grammar.Points)]
    x, y = (np.concatenate([getattr(m, k) for m in dots]) for k in "xy")
    np.testing.assert_array_equal(np.sort(x), np.sort(parts[1].eigenvalue.isel(rank=0)))
    np.testing.assert_array_equal(np.sort(y), np.sort(parts[0].loss_gap))
    tau = stats.kendall(x, y, seed=0).tau
    assert drawn.panels[0].title.startswith(f"τ = {tau:+.2f}".replace("-", "−"))
    assert "within" in drawn.panels[0].title


def test_a_layers_norm_is_that_of_its_tensors_together(data):
    ds = data["gradient_zscores"]
    drawn = check_figure("layer_gradients", ds, data["perturbation_history"], setting="noisy",
                         layerwise=("sam",))  # fmt: skip
    names = [str(n) for n in ds.tensor.values]
    size = np.asarray(ds["size"].values, float)
    for v, label in (("sgd", "SGD"), ("sam", "SAM")):
        here = ds.isel(run=np.flatnonzero(ds.variant.values == v))
        square = (size * (here["mean"] ** 2 + here["std"] ** 2).transpose("run", "tensor")).values
        layers = list(dict.fromkeys(n.rsplit(".", 1)[0] for n in names))
        for row, layer in enumerate(layers):
            own = [i for i, n in enumerate(names) if n.startswith(f"{layer}.")]
            expected = np.exp(np.log(np.sqrt(square[:, own].sum(1))).mean())
            (dots,) = [m for m in drawn.panels[0].marks if m.name == label]
            assert dots.x[row] == pytest.approx(expected)
    (shares,) = drawn.panels[1].marks
    assert shares.name == "SAM"
    assert ((shares.x >= 0) & (shares.x <= 100)).all()


def test_the_map_of_masks_has_the_densities(data):
    ds = data["perturbation_history"]
    drawn = check_figure("density_map", ds, setting="noisy")
    tables = {p.title: next(m for m in p.marks if isinstance(m, grammar.Matrix))
              for p in drawn.panels}  # fmt: skip
    here = ds.isel(run=np.flatnonzero(ds.variant.values == "zsharp"))
    expected = here.density.transpose("run", "tensor", "epoch").mean("run")
    np.testing.assert_allclose(tables["ZSharp"].values, expected)
    assert tables["ZSharp"].limits[1] == 1


def test_flatness_stands_beside_the_error_on_a_logarithmic_axis(data):
    parts = [data[n] for n in ("generalization", "top_eigenvalues", "sharpness")]
    drawn = check_figure("flatness_vs_accuracy", *parts, setting="noisy")
    first = drawn.panels[0]
    assert (first.y.label, first.y.units, first.y.log) == ("test error", "%", True)
    for v in ("sgd", "sam"):
        here = parts[0].isel(run=np.flatnonzero(parts[0].variant.values == v))
        label = str(here.label.values[0])
        seeds, mean = [m for m in first.marks if getattr(m, "name", "") == label][:2]
        error = 100 * (1 - here.test_accuracy.values)
        np.testing.assert_allclose(seeds.y, error)
        assert mean.y[0] == pytest.approx(np.exp(np.log(error).mean()))
    means = [m for m in first.marks if isinstance(m, grammar.Points) and len(m.x) == 1]
    tau = stats.kendall([m.x[0] for m in means], [m.y[0] for m in means], seed=0).tau
    # Flatter and better go together: eigenvalue and error rise with each other.
    assert first.title == f"τ = {tau:+.2f}".replace("-", "−")


def test_no_error_of_two_seeds_is_drawn_beyond_what_an_error_can_be(data):
    parts = [data[n] for n in ("generalization", "top_eigenvalues", "sharpness")]
    far = parts[0].copy(deep=True)
    far["test_accuracy"].values[:] = np.where(far.seed.values == 0, 0.38, 0.98)
    for name, place in (("flatness_vs_accuracy", "y"), ("headline", "x")):
        rest = parts[1:] if name == "flatness_vs_accuracy" else []
        drawn = check_figure(name, far, *rest, setting="noisy")
        ends = [
            getattr(mark, f"{place}_{end}")
            for mark in drawn.panels[0].marks
            for end in ("low", "high")
            if getattr(mark, f"{place}_{end}", None) is not None
        ]
        assert ends
        assert all(((end > 0) & (end <= 100)).all() for end in ends)
