"""A study: many runs, measured alike, from one TOML file to results on disk.

from landscape import study
plan = study.load(Path("study.toml"))
summary = study.run(plan, Path("studies/mine"), study.Options(workers=2))
study.results("studies/mine")["generalization"]     # xarray; .frame(name, variable) for pandas

`path` is a study file, `folder` that of a study. `overrides` are lines such as "training.epochs=5"
that win over the file, `dtype` one for its precision, "float32" or "float64".
"""

from landscape.study.demo import demo_text
from landscape.study.engines import Ray, Slurm
from landscape.study.opened import Results
from landscape.study.reading import load, parse
from landscape.study.running import Options, Summary, reopen, run
from landscape.study.spec import Study
from landscape.study.status import Status, status
from landscape.study.verifying import verify

__all__ = [
    "Options", "Ray", "Results", "Slurm", "Status", "Study", "Summary", "demo_text", "load",
    "parse", "reopen", "results", "run", "status", "verify",
]  # fmt: skip

results = Results
