"""One order of arguments and one name for one thing, over the whole public surface."""

import inspect
import re

import pytest

from landscape import measure
from tests.test_docstrings import SURFACE

FUNCTIONS = {name: value for name, value in SURFACE.items() if inspect.isroutine(value)}
SIGNATURES = {name: inspect.signature(value).parameters for name, value in SURFACE.items()}

# A seed that decides nothing unless asked for, or data that all trainings of a study share.
SEED_WITH_A_DEFAULT = {
    "sam.SAM": "recipes without draws ignore it",
    "problems.load_data": "the split is the data's, and the same for everybody",
    "landscape.monitor": "of the start of a search alone",
    "monitoring.monitor": "the same",
    "measure.gradient_zscores": "the full gradient, its default source, draws nothing",
    "measure.three_points": "only names the grid's provenance: nothing is drawn",
}
# What things are called, and what they must not be called besides.
OTHER_NAMES = {
    "seed": "random_state|rng|rng_seed|random_seed",
    "rho": "epsilon_ball|perturbation_radius|sam_radius",
    "variant": "recipe|optimizer_name|algorithm",
    "variants": "recipes|algorithms",
    "by": "groupby|group_by|per",
    "select": "params|parameter_filter|subset|layers|mask_by",
    "num_probes": "n_probes|n_vec|num_vecs|num_samples_trace",
    "k": "n_eigs|num_eigenthings|top_n|num_eigenvalues",
    "tolerance": "tol|rtol|atol",
    "directions": "vectors_of_plane|dirs",
    "points": "num_points|n_points|resolution",
    "folder": "directory|dir|out_dir|workdir",
    "path": "filename|fname|filepath",
    "level": "confidence|conf|alpha_level",
    "model": "net|network",
    "theta": "params_vector|flat_params|w",
}
# One name, one kind of thing: a pattern for its annotation, and where else it means another.
KINDS = {
    "seed": (r"int", ()),
    "rho": (r"float", ()),
    "variant": (r"Variant", ("report.diagnose",)),  # there an id
    "variants": (r"Mapping\[str, .*Variant\]|tuple\[str", ("study.Study",)),  # by name, or names
    "select": (r"str \| .*Sequence\[str\]", ("sam.SAM",)),  # examples of a batch
    "by": (r"str \| int \| .*Mapping", ()),
    "k": (r"int", ()),
    "num_probes": (r"int", ()),
    "batch_size": (r"int", ()),
    "points": (r"int", ()),
    "tolerance": (r"float", ()),
    "percentile": (r"float", ()),
    "level": (r"float", ()),
    "theta": (r"Float\[Tensor|Tensor", ("sam.vasso",)),  # that paper's name of a decay
    "risk": (r"EmpiricalRisk", ()),
    "model": (r"Module", ()),
    "models": (r"Mapping\[str, .*Tensor", ()),
    "certify": (r"str", ()),
    "matrix": (r"str", ()),
    "folder": (r"Path|StudyFolder", ()),
    "path": (r"Path|str", ()),
}


def test_a_seed_is_given_by_name_and_has_no_default():
    seeded = {name: p["seed"] for name, p in SIGNATURES.items() if "seed" in p}
    assert len(seeded) > 30
    assert not [n for n, seed in seeded.items() if seed.kind is not seed.KEYWORD_ONLY]
    defaults = {n for n, seed in seeded.items() if seed.default is not seed.empty}
    assert defaults == set(SEED_WITH_A_DEFAULT)


def test_the_risk_comes_first_then_theta_and_everything_else_by_name():
    for name in measure.__all__:
        parameters = list(SIGNATURES[f"measure.{name}"].values())
        names = [p.name for p in parameters]
        if names[0] == "risk":
            assert names[1] in ("theta", "models", "checkpoints"), name  # one, several, in order
        given = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(given) <= 3 or inspect.isclass(getattr(measure, name)), name
        if inspect.isroutine(getattr(measure, name)):
            assert not [p for p in given if p.default is not p.empty], name


def test_nothing_is_swallowed():
    """No **options: a misspelled argument is an error. SAM takes them to refuse them by name."""
    open_ended = {
        n for n, p in SIGNATURES.items() if any(q.kind is q.VAR_KEYWORD for q in p.values())
    }
    assert open_ended == {"sam.SAM"}


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_one_thing_has_one_name(name):
    other = re.compile(OTHER_NAMES[name])
    assert not [(n, p) for n, ps in SIGNATURES.items() for p in ps if other.fullmatch(p)]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_one_name_is_one_kind_of_thing(name):
    pattern, elsewhere = KINDS[name]
    kinds = {n: str(p[name].annotation) for n, p in SIGNATURES.items() if name in p}
    assert kinds
    other = {n for n, kind in kinds.items() if not re.search(pattern, kind)}
    assert other == set(elsewhere)
