"""Do studies of many runs stay readable? Seconds by the number of runs, and the size of the page.

    OMP_NUM_THREADS=1 python -m benchmarks.many_runs                 # 1 250 to 10 000 runs
    OMP_NUM_THREADS=1 python -m benchmarks.many_runs --page STUDY    # as of 300 runs

A run is a folder as `landscape run` leaves it. One run of each of ten variants is measured; the
others repeat it with other numbers, written by the same function, so that what is timed is not the
measuring: reading the study file, `landscape run` over folders that are whole (it looks at each,
and combines), the same once more, with one seed more of each variant, `landscape verify`, and
the report without static figures. CPU seconds of this process. `exponent` is that of seconds over
runs between the two largest studies: a quadratic step would take it towards 2.

--page: the combined results of a study, repeated with other numbers until there are 300 runs; the
bytes of its page and, where playwright is installed, the time until Chromium has loaded it and has
drawn the first figure.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from benchmarks.interleaved import hardware, versions
from landscape import report, results, storage
from landscape.problems import WeightsReport
from landscape.storage import StudyFolder
from landscape.study import Options, Study, parse, run, run_folder, verify
from landscape.study.running import job_of

RESULTS = Path(__file__).parent / "results" / "many_runs.json"
TESTS = Path(__file__).parents[1] / "tests"
VARIANTS = tuple(f"v{number}" for number in range(10))
HERE = Options(device="cpu", workers=0, quiet=True)
SIZES = (1250, 2500, 5000, 10_000)


def text(seeds: int, base: Path) -> str:
    """A study of checkpoints from elsewhere: `seeds` of each variant."""
    listed = "\n".join(f'[variants.{name}]\nrecipe = "none"' for name in VARIANTS)
    return f"""name = "many"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
{listed}
[grid]
weights = "{base}/{{variant}}_{{seed}}.pt"
variant = {json.dumps(VARIANTS)}
seed = {json.dumps(list(range(seeds)))}
[measure]
examples = 24
measurements = ["generalization"]
"""


def read(seeds: int, base: Path) -> Study:
    """The study of so many seeds."""
    return parse(text(seeds, base), base=TESTS)


def others(ds: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """The same result with every measured number within a few per cent of what it was."""
    changed = {
        name: (v.dims, v.values * rng.uniform(0.97, 1.03, v.shape).astype(v.dtype), v.attrs)
        for name, v in ds.data_vars.items()
        if v.dtype.kind == "f"
    }
    return ds.assign(changed)


def grow(folder: Path, base: Path, before: int, seeds: int) -> None:
    """Weights and results of the seeds from `before` on."""
    study, place = read(seeds, base), StudyFolder(folder)
    known = run_folder.Trainings(study, place)
    rng = np.random.default_rng(seeds)
    first = {run.variant: run for run in study.runs if run.seed == 0}
    for one in study.runs:
        if one.seed < before:
            continue
        job = job_of(known, one, place, "cpu", HERE)
        for measurement, key in known.keyed(one):
            source = run_folder.result_path(place.run(first[one.variant].run_id), measurement.name)
            weights = WeightsReport(
                path=str(one.weights),
                sha256=storage.file_sha256(Path(str(one.weights))),
                num_tensors=4,
            )
            run_folder.keep(job, measurement, key, others(results.load(source), rng), weights)


def write_weights(base: Path, before: int, seeds: int) -> None:
    """A checkpoint for each variant and seed."""
    sys.path.insert(0, str(TESTS))
    import study_problem

    state = study_problem.make().state_dict()
    for number, name in enumerate(VARIANTS):
        for seed in range(before, seeds):
            by = 1e-3 * (number + seed / 1e4)
            moved = {k: v + by if v.is_floating_point() else v for k, v in state.items()}
            torch.save(moved, base / f"{name}_{seed}.pt")


def timed(row: dict[str, float], what: str, work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns; its CPU seconds go into the row."""
    began = time.process_time()
    found = work(*given)
    row[what] = round(time.process_time() - began, 2)
    return found


def table(sizes: tuple[int, ...]) -> None:
    """Seconds of every step by the number of runs; kept after each."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        base, folder = Path(name) / "ckpt", Path(name) / "study"
        base.mkdir()
        write_weights(base, 0, 1)
        assert not run(read(1, base), folder, HERE).failed
        there = 1
        for size in sizes:
            seeds = size // len(VARIANTS)
            write_weights(base, there, seeds + 1)
            grow(folder, base, there, seeds)
            shutil.rmtree(folder / "results")
            StudyFolder(folder).report.unlink(missing_ok=True)
            row: dict[str, float] = {}
            plan = timed(row, "read the study file", read, seeds, base)
            for what in ("run: all there, combined anew", "run: nothing new"):
                found = timed(row, what, run, plan, folder, HERE)
                assert (len(found.kept), len(found.failed)) == (size, 0), found.failed
            grow(folder, base, seeds, seeds + 1)
            more = read(seeds + 1, base)
            timed(row, "run: ten runs more", run, more, folder, HERE)
            there = seeds + 1
            whole = timed(row, "verify", verify, folder)
            assert whole.problems == [], whole.problems[:3]
            timed(row, "report", lambda: report.write(StudyFolder(folder), formats=()))
            row["page_mb"] = round(StudyFolder(folder).report.stat().st_size / 1e6, 2)
            rows[str(size)] = row
            print(size, row, flush=True)
            keep({"cpu_seconds": rows, "exponent": exponents(rows)})


def exponents(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of seconds over runs, between the two largest studies; short steps are left out."""
    if len(rows) < 2:
        return {}
    (a, before), (b, after) = list(rows.items())[-2:]
    return {
        what: round(math.log(seconds / before[what]) / math.log(int(b) / int(a)), 2)
        for what, seconds in after.items()
        if what != "page_mb" and before[what] > 0.2
    }


def keep(found: dict[str, Any]) -> None:
    """Put what was found into the results, beside what is there."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known |= {"machine": hardware(), "versions": versions(), **found}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def repeated(study: StudyFolder, place: StudyFolder, count: int) -> None:
    """The combined results and choices of a study, as if it had `count` runs."""
    rng = np.random.default_rng(0)
    resolved = storage.read_json(study.resolved)
    runs = resolved["runs"]
    times = -(-count // len(runs))
    most = 1 + max(int(one["seed"]) for one in runs)

    def renamed(one: dict[str, Any], number: int) -> dict[str, Any]:
        seed = int(one["seed"]) + number * most
        return {**one, "run": f"{one['run']}-{number}", "seed": seed}

    listed = [renamed(one, number) for number in range(times) for one in runs][:count]
    wanted = {one["run"] for one in listed}
    storage.write_json(place.resolved, {**resolved, "runs": listed})
    for path in sorted(study.results.glob("*.nc")):
        if path.stem.startswith("along_"):
            continue
        ds = results.load(path)
        told = results.provenance(ds).get("runs", [])
        parts = []
        for number in range(times):
            names = [f"{name}-{number}" for name in ds.run.values]
            part = others(ds, rng) if number else ds
            seeds = ("run", ds.seed.values + number * most)
            part = part.assign_coords(run=names, seed=seeds)
            parts.append(part.isel(run=[n for n, name in enumerate(names) if name in wanted]))
        whole = xr.concat(parts, "run", data_vars="minimal", coords="minimal", compat="override",
                          join="override", combine_attrs="override")  # fmt: skip
        told = (list(told) * times)[: whole.sizes["run"]]
        provenance = {**results.provenance(ds), "runs": told}
        results.save(
            whole.assign_attrs(provenance=json.dumps(provenance)), place.results / path.name
        )


def page(study: Path, count: int = 300) -> dict[str, Any]:
    """Bytes of the page of so many runs, the seconds it took, and those until it is loaded."""
    with tempfile.TemporaryDirectory() as name:
        place = StudyFolder(Path(name) / "study")
        repeated(StudyFolder(study), place, count)
        row: dict[str, Any] = {"runs": count}
        timed(row, "cpu_seconds", lambda: report.write(place, formats=()))
        row["megabytes"] = round(place.report.stat().st_size / 1e6, 2)
        print(row, flush=True)
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            return row
        from benchmarks.page_load import load

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            found = [load(browser, place.report, ".figure .main-svg") for _ in range(3)]
            row |= {"chromium": browser.version}
            browser.close()
        loaded, drawn = np.median(np.array(found), 0)
        return row | {"loaded_ms": round(loaded), "first_figure_ms": round(drawn)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, metavar="STUDY")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    asked = parser.parse_args()
    if asked.page:
        keep({"page": page(asked.page)})
    else:
        table(tuple(asked.sizes))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
