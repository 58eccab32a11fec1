"""Which figures the report shows, under which heading, from which measurements."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from landscape.plot import figures
from landscape.plot.drawing import Drawing
from landscape.report.family import Family
from landscape.report.study import StudyResults
from landscape.stats import Decision


@dataclass(frozen=True)
class Entry:
    """A function of `plot.figures` and the measurements that are its arguments, in order.

    Without the first `needed` of them there is no figure (default: all); the others may be missing.
    Neither is there one where the first lacks one of `variables`, which older results do not have.
    Its keywords `setting`, `references`, `reference` and `metric` are filled in from the study, and
    `decided` with the page's decisions on the metric, so that figure and page cannot disagree.
    """

    figure: str
    data: tuple[str, ...] = ()
    needed: int | None = None
    variables: tuple[str, ...] = ()
    asked: bool = False  # drawn where it is named (`landscape figures --only`), not on the page

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of the arguments; the figure's own name unless given."""
        return self.data or (self.figure,)

    def draw(self, study: StudyResults, setting: str, family: Family) -> Drawing | None:
        """The figure in one setting, None where a measurement that it needs was not made."""
        names = self.measurements
        needed = names if self.needed is None else names[: self.needed]
        if not all(study.has(name, setting) for name in needed):
            return None
        if any(name not in study.data[names[0]] for name in self.variables):
            return None
        make = getattr(figures, self.figure)
        accepted = inspect.signature(make).parameters
        if "metric" in accepted and study.metric not in study.data[names[0]]:
            return None
        found: list[xr.Dataset | None] = [
            study.data[name] if study.has(name, setting) else None for name in names
        ]
        references = tuple(study.references(setting))
        keywords: dict[str, Any] = {
            "setting": setting,
            "references": references,
            "reference": next(iter(references), "sgd"),
            "metric": study.metric,
            "decided": _decided(family, setting),
        }
        made = make(*found, **{key: keywords[key] for key in keywords if key in accepted})
        return _of_one_seed(made) if _one_seed(study, setting) else made


def _one_seed(study: StudyResults, setting: str) -> bool:
    return all(v.ds.sizes["run"] == 1 for v in study.variants(setting))


def _of_one_seed(drawn: Drawing | None) -> Drawing | None:
    """The drawing with a caption that promises no interval over seeds where there is one seed."""
    said = "" if drawn is None else drawn.caption.lower()
    promised = ("t-interval" in said or "mean over" in said) and "one seed)" not in said
    if drawn is None or not promised or "first seed only" in said:
        return drawn
    more = " Here it is one seed of each variant: a mean is that seed, without an interval."
    return replace(drawn, caption=drawn.caption + more)


def _decided(family: Family, setting: str) -> dict[tuple[str, str], Decision]:
    """(row, reference) -> what the page decided on the compared metric."""
    study = family.study
    found = (one for ref in study.references(setting) for one in family.to(setting, ref))
    return {(one.a, one.b): one.decision for one in found}


SECTIONS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Outcome",
        (
            Entry("headline", ("generalization",)),
            Entry(
                "flatness_vs_accuracy",
                ("generalization", "top_eigenvalues", "sharpness"),
                needed=1,
            ),
            Entry(
                "along_axis",
                ("generalization", "top_eigenvalues", "hessian_trace", "sharpness"),
                needed=1,
            ),
            Entry(
                "sharpness_vs_gap",
                ("generalization", "top_eigenvalues", "sharpness"),
                needed=1,
                variables=("loss_gap",),
            ),
        ),
    ),
    (
        "Is it flatter?",
        (
            Entry("top_eigenvalues"),
            Entry("hessian_trace"),
            Entry("sharpness"),
            Entry("sharpness_terms", ("sharpness",), variables=("one_step_second_order",)),
            Entry("adaptive_sharpness"),
            Entry("m_sharpness"),
            Entry("spectral_density"),
            Entry("spectral_views", ("spectral_density",), variables=("effective_dimension_low",)),
            Entry("frobenius"),
        ),
    ),
    (
        "Where does it curve?",
        (
            Entry("block_curvature"),
            Entry("alignment"),
            Entry("gauss_newton_eigenvalues", ("gauss_newton_eigenvalues", "top_eigenvalues")),
            Entry("training_curvature"),
            Entry("critical_sharpness", ("critical_sharpness", "top_eigenvalues"), needed=1),
            Entry("minibatch_eigenvalues"),
            Entry("data_bracket"),
        ),
    ),
    (
        "What is perturbed?",
        (
            Entry("perturbation"),
            Entry("perturbation_controls"),
            Entry("energy_over_time", ("perturbation_history",)),
            Entry("energy_map", ("perturbation_history",)),
            Entry("density_map", ("perturbation_history",)),
            Entry("layer_gradients", ("gradient_zscores", "perturbation_history"), needed=1),
            Entry("norm_ratio_map", ("perturbation_history",), variables=("norm_ratio",)),
            Entry("perturbation_over_time", ("perturbation_history",)),
            Entry("gradient_zscores"),
            Entry("zscore_history"),
            Entry("zscore_tails", ("gradient_zscores",), variables=("exceedance",)),
            Entry("mask_overlap"),
            Entry("perturbation_cosines"),
            Entry("batch_overlap"),
            Entry("saved_mask_overlap"),
            Entry("mask_persistence"),
            Entry("mask_selection"),
            Entry("mask_filters"),
            Entry("enrichment"),
            Entry("gradient_noise"),
        ),
    ),
    (
        "What is learned?",
        (
            Entry("calibration"),
            Entry("memorization"),
            Entry("margins"),
            Entry("features"),
            Entry("norms"),
            Entry("robustness"),
        ),
    ),
    (
        "The surface around the solution",
        (
            Entry("loss_slice", ("loss_slice", "loss_slice_eval"), needed=1),
            Entry("loss_plane", ("loss_plane", "loss_slice"), needed=1),
            Entry("loss_surface", ("loss_plane",)),
            Entry("surface_pair", ("loss_plane",), asked=True),
            Entry("surface_persistence", ("loss_plane",)),
            Entry("plane_difference", ("loss_plane",)),
            Entry("curvature_map"),
            Entry("perturbation_slice"),
            Entry("trajectory"),
            Entry("interpolation"),
        ),
    ),
    (
        "Between the solutions",
        (Entry("barrier"), Entry("three_points"), Entry("bezier")),
    ),
    ("Training", (Entry("history"),)),
)
