"""Every recipe of `landscape.sam` can be named in a study file, with its options."""

import pytest

from landscape import sam, study
from landscape.errors import LandscapeError
from landscape.study import possible
from tests.sam_models import REQUIRED

FILE = """
[problem]
data = "digits"
model = "mlp"

[variants]
{variants}

[grid]
variant = [{names}]
seed = [0]
"""


def written(tmp_path, tables):
    parts = [
        f"[variants.{name}]\n" + "\n".join(f"{k} = {v}" for k, v in options.items())
        for name, options in tables.items()
    ]
    file = tmp_path / "study.toml"
    names = ", ".join(f'"{name}"' for name in tables)
    file.write_text(FILE.format(variants="\n".join(parts), names=names))
    return file


def test_every_recipe_can_be_named_in_a_study_file(tmp_path):
    tables = {}
    for name in sam.recipes():
        options = {
            k: list(v) if isinstance(v, tuple) else v for k, v in REQUIRED.get(name, {}).items()
        }
        tables[f"my_{name}"] = {"recipe": f'"{name}"', **options}
    runs = study.load(written(tmp_path, tables)).runs
    assert {run.recipe for run in runs} == set(sam.recipes())
    for run in runs:
        assert sam.make(run.recipe, dict(run.options)).name == run.recipe


def test_an_option_that_a_recipe_does_not_have_is_refused(tmp_path):
    with pytest.raises(LandscapeError, match=r"no entry 'tilt'\. Possible: rho, theta"):
        study.load(written(tmp_path, {"mine": {"recipe": '"vasso"', "tilt": 1.0}}))
    assert possible.recipe_options("vasso")["theta"] == 0.9
