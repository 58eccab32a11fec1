"""Every measurement: saved and read back whole, combined over runs, on models of other shapes."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, results, sam
from tests.measure_problems import cnn_risk, fingerprint, images, same

VARIANTS = {"zsharp": sam.zsharp(rho=0.1), "random": sam.random_mask(rho=0.1)}
EXPECTED = {
    "top_eigenvalues": {
        "eigenvalue": ("rank",),
        "residual_norm": ("rank",),
        "converged": ("rank",),
    },
    "hessian_trace": {"trace_sample": ("probe",), "trace": (), "trace_stderr": ()},
    "spectral_density": {"ritz_value": ("probe", "node"), "weight": ("probe", "node")},
    "sharpness": dict.fromkeys(
        [
            "one_step",
            "one_step_first_order",
            "one_step_second_order",
            "worst_case",
            "gaussian",
            "gaussian_stderr",
        ],
        ("rho",),
    ),
    "loss_slice": {
        "loss": ("direction", "alpha"),
        "error_rate": ("direction", "alpha"),
        "center_loss": (),
        "theta_norm": (),
    },
    "loss_plane": {
        "loss": ("alpha", "beta"),
        "error_rate": ("alpha", "beta"),
        **dict.fromkeys(("center_loss", "axis_cosine", "alpha_norm", "beta_norm"), ()),
    },
    "gradient_zscores": {
        "density": ("tensor", "bin"),
        **dict.fromkeys(
            [
                "mean",
                "std",
                "mean_over_std",
                "skewness",
                "excess_kurtosis",
                "threshold",
                "captured_energy",
                "topk_jaccard",
                "flag",
            ],
            ("tensor",),
        ),
    },
    "perturbation": {
        **dict.fromkeys(
            [
                "density",
                "energy_share",
                "parameter_share",
                "perturbation_norm",
                "relative_norm",
                "first_order_effect",
            ],
            ("tensor",),
        ),
        **dict.fromkeys(
            [
                "rho",
                "rho_eff",
                "radius_ratio",
                "total_density",
                "loss_increase",
                "loss_increase_full",
            ],
            (),
        ),
    },
    "mask_overlap": {
        **dict.fromkeys(["jaccard", "expected_jaccard", "kappa", "z_score"], ("pair", "tensor")),
        **dict.fromkeys(["jaccard_all", "expected_jaccard_all", "kappa_all"], ("pair",)),
    },
    "generalization": {
        **dict.fromkeys(
            [
                "train_loss",
                "train_accuracy",
                "val_loss",
                "val_accuracy",
                "test_loss",
                "test_accuracy",
                "accuracy_gap",
                "loss_gap",
                "mislabelled_fit",
                "mislabelled_recovered",
                "clean_train_accuracy",
                "ece",
            ],
            (),
        ),
        **dict.fromkeys(["test_correct", "test_losses"], ("example",)),
    },
    "crosscheck": dict.fromkeys(
        [
            "pyhessian_eigenvalue",
            "landscape_eigenvalue",
            "residual_norm",
            "pyhessian_trace",
            "pyhessian_trace_stderr",
            "pyhessian_trace_probes",
            "landscape_trace",
            "landscape_trace_stderr",
        ],
        (),
    ),
}


def every_measurement(risk):
    theta = risk.theta
    noisy = (images(24)[1] + 1) % 4
    return [
        measure.top_eigenvalues(risk, theta, k=3, seed=0),
        measure.hessian_trace(risk, theta, num_probes=3, seed=0),
        measure.spectral_density(risk, theta, num_probes=2, num_nodes=4, seed=0),
        measure.sharpness(risk, theta, rho=[0.1, 0.2], ascent_steps=1, num_pairs=2, seed=0),
        measure.loss_slice(risk, theta, num_directions=2, points=3, seed=0),
        measure.loss_plane(risk, theta, points=3, seed=0),
        measure.gradient_zscores(risk, theta),
        measure.perturbation(risk, theta, variant=VARIANTS["zsharp"], batch_size=8, seed=0),
        measure.mask_overlap(risk, theta, variants=VARIANTS, batch_size=8, seed=0),
        measure.generalization(
            {"train": risk, "val": risk, "test": risk}, theta, clean_targets=noisy
        ),
        measure.crosscheck(risk, theta, num_probes=2, max_iterations=5, seed=0),
    ]


@pytest.fixture(scope="module")
def runs():
    return [every_measurement(cnn_risk(seed=seed)[0]) for seed in (0, 1)]


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_names_dimensions_units_and_round_trip(runs, number, tmp_path):
    ds = runs[0][number]
    name = ds.attrs["measurement"]
    assert name == list(EXPECTED)[number]
    for variable, dims in EXPECTED[name].items():
        assert ds[variable].dims == dims
    for variable in ds.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"]
    if "tensor" in ds.dims:
        for coordinate in ("kind", "size", "ndim"):
            assert ds[coordinate].dims == ("tensor",)
    again = results.load(results.save(ds, tmp_path / "result.nc"))
    assert again.attrs == ds.attrs
    for variable in ds.variables:
        np.testing.assert_array_equal(again[variable], ds[variable])
    both = results.combine([({"run": i, "seed": i}, run[number]) for i, run in enumerate(runs)])
    results.load(results.save(both, tmp_path / "combined.nc"))
    for variable, dims in EXPECTED[name].items():
        assert both[variable].dims == ("run", *dims)
    provenance = results.provenance(ds)
    for key in ("bn", "num_examples", "dtype", "device", "theta_sha256", "cost_gradients"):
        assert key in provenance


def test_the_same_call_gives_the_same_result_to_the_last_bit(runs):
    for first, second in zip(runs[0], every_measurement(cnn_risk(seed=0)[0]), strict=True):
        assert first.identical(second), first.attrs["measurement"]


class Tokens(nn.Module):
    """Embedding, attention and dictionary inputs."""

    def __init__(self):
        super().__init__()
        self.lookup = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, mask):
        hidden = self.encoder(self.lookup(tokens))
        return self.head((hidden * mask[..., None]).mean(1))


def test_a_transformer_with_dictionary_batches_is_measured_whole():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokens().double()
    g = torch.Generator().manual_seed(0)
    batch = {
        "tokens": torch.randint(11, (12, 5), generator=g),
        "mask": torch.ones(12, 5, dtype=torch.float64),
        "labels": torch.randint(3, (12,), generator=g),
    }
    before = fingerprint(model)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), batch)
    theta = risk.theta
    top = measure.top_eigenvalues(risk, theta, k=2, seed=0)
    assert top["converged"].all()
    peer = measure.crosscheck(risk, theta, num_probes=4, max_iterations=300, seed=0)
    assert float(peer["pyhessian_eigenvalue"]) == pytest.approx(
        float(peer["landscape_eigenvalue"]), rel=0.02
    )
    made = measure.perturbation(risk, theta, variant=sam.sam_on(rho=0.1), batch_size=6, seed=0)
    assert set(made["kind"].values[made["energy_share"].values > 0]) == {"norm"}
    ds = measure.loss_slice(risk, theta, num_directions=2, points=3, seed=1)
    d = plane.random(risk, theta, num_directions=2, seed=1).directions
    assert float(ds["loss"][1, 2]) == pytest.approx(float(risk.loss(theta + d[1])), rel=1e-12)
    assert "embedding" in measure.gradient_zscores(risk, theta)["kind"].values
    same(before, fingerprint(model))


FUNCTIONS = {
    "top_eigenvalues": {"seed": 0},
    "hessian_trace": {"seed": 0},
    "spectral_density": {"seed": 0},
    "sharpness": {"seed": 0},
    "adaptive_sharpness": {"seed": 0},
    "m_sharpness": {"seed": 0},
    "loss_slice": {"seed": 0},
    "loss_plane": {"seed": 0},
    "gradient_zscores": {},
    "gradient_noise": {"seed": 0},
    "perturbation_controls": {"variant": VARIANTS["zsharp"], "seed": 0},
    "perturbation_cosines": {"variants": VARIANTS, "seed": 0},
    "batch_overlap": {"variants": VARIANTS, "batch_size": 8, "num_batches": 2, "seed": 0},
    "robustness": {"seed": 0},
    "perturbation": {"variant": VARIANTS["zsharp"], "seed": 0},
    "mask_overlap": {"variants": VARIANTS, "seed": 0},
    "alignment": {"variants": VARIANTS, "seed": 0},
    "enrichment": {"variants": VARIANTS, "seed": 0},
    "crosscheck": {"seed": 0},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_parameters_overflowing_losses_and_other_models_are_refused_in_one_sentence(name):
    risk, _ = cnn_risk()
    function, options = getattr(measure, name), FUNCTIONS[name]
    theta = risk.theta
    theta[3] = torch.nan
    with pytest.raises(LandscapeError, match="1 of 306 parameters are NaN or infinite"):
        function(risk, theta, **options)
    with pytest.raises(LandscapeError, match=r"shape \(3,\) where the model has P = 306"):
        function(risk, theta[:3], **options)
    theta = risk.theta
    theta[-40:] = torch.finfo(torch.float64).max
    with pytest.raises(LandscapeError, match=r"loss is (inf|nan)|not finite"):
        function(risk, theta, **options)
