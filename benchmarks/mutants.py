"""Would a test notice? Small faults planted one at a time in the rooms whose numbers matter most.

    pip install 'cosmic-ray>=8.4' pytest-cov
    OMP_NUM_THREADS=1 python -m benchmarks.mutants --each 25 --seed 0

The mutants are cosmic-ray's (another operator, comparison, number, constant, a loop that never
runs, a condition turned round), `--each` of them drawn at random from all places of a package. The
tests of the package run once under coverage, which says which of them pass each line; a mutant then
meets those tests only, and is killed by the first that fails. It survives when all of them pass:
either the tests have a hole there, or the change changes nothing that anybody can see (a speed, a
text, a bound that is never met): README.md beside this says which. Everything happens in a copy of
the repository, and what was done is kept: the same command goes on.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import coverage
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from coverage.parser import PythonParser

from benchmarks.interleaved import versions

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "mutants.json"
PACKAGES = {
    "landscape/linalg": ["tests/linalg", "tests/vectors", "tests/measure/curvature"],
    "landscape/stats": ["tests/stats", "tests/study/test_axes.py"],
    "landscape/risk": ["tests/risk"],
    "landscape/sam": ["tests/sam"],
}
# `a | b` is a type nearly always; shifts and bits of floats raise, and their deaths would flatter.
LEFT_OUT = re.compile(r"RemoveDecorator|ExceptionReplacer|Operator_BitOr_|_(LShift|RShift|Bit\w+)$")
QUICK = "not slow and not gpu and not browser"


def operators() -> dict[str, object]:
    """The mutations without arguments, by name."""
    found = {}
    for name in plugins.operator_names():
        made = plugins.get_operator(name)
        if not LEFT_OUT.search(name) and not made.arguments():
            found[name] = made()
    return found


def all_of(package: str) -> list[dict]:
    """Every mutant of a package: file, place, operator and which place of that operator it is."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = get_ast(path.read_text())
        for name, operator in operators().items():
            places = (
                place for node in ast_nodes(tree) for place in operator.mutation_positions(node)
            )
            for k, (start, _) in enumerate(places):
                file = str(path.relative_to(ROOT))
                found.append(
                    {"file": file, "line": start[0], "column": start[1], "operator": name, "k": k}
                )
    return found


def draw(package: str, count: int, seed: int) -> list[dict]:
    """Places drawn without replacement, and one mutant of each: `+` counts once, not six times."""
    places: dict[tuple, list[dict]] = {}
    for mutant in all_of(package):
        places.setdefault((mutant["file"], mutant["line"], mutant["column"]), []).append(mutant)
    dice = random.Random(seed)
    chosen = dice.sample(list(places), min(count, len(places)))
    return [{"places": len(places)} | dice.choice(places[place]) for place in chosen]


def pytest(folder: Path, *arguments: str, seconds: float | None = None) -> int:
    """Exit status of the tests in a copy; 124 where they run past `seconds`."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        QUICK,
        *arguments,
    ]
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, timeout=seconds, capture_output=True
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def passing(folder: Path, package: str, tests: list[str]) -> dict[str, dict[int, list[str]]]:
    """File -> line -> the tests that pass it, from one run of them under coverage."""
    kept = ROOT / "build" / f"coverage-{Path(package).name}"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        code = pytest(folder, f"--cov={package}", "--cov-context=test", "--cov-report=", *tests)
        if code:
            raise SystemExit(f"{tests} do not pass unchanged in {folder} (exit status {code})")
        shutil.move(folder / ".coverage", kept)
    data = coverage.CoverageData(str(kept))
    data.read()
    lines: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        relative = "landscape/" + file.rpartition("/landscape/")[2]
        parser = PythonParser(filename=str(ROOT / relative))
        parser.parse_source()
        contexts = data.contexts_by_lineno(file)
        lines[relative] = {}
        for line in range(1, len((ROOT / relative).read_text().splitlines()) + 1):
            names = contexts.get(
                parser.first_line(line), []
            )  # a statement counts by its first line
            found = sorted({name.split("|")[0] for name in names if name})
            lines[relative][line] = found or (tests if names else [])  # "" is the import: everybody
    return lines


def met(folder: Path, mutant: dict, tests: list[str]) -> dict:
    """What became of one mutant: killed, survived, or not reached by any test."""
    path = folder / mutant["file"]
    text = path.read_text()
    changed = mutate_code(text, operators()[mutant["operator"]], mutant["k"])
    before, after = text.splitlines(), changed.splitlines()
    shown = [(a.strip(), b.strip()) for a, b in zip(before, after) if a != b][:1]
    found = mutant | {"was": shown[0][0], "is": shown[0][1], "tests": len(tests)}
    if not tests:
        return found | {"outcome": "no test"}
    path.write_text(changed)
    try:
        code = pytest(folder, "-x", *tests, seconds=900)
    finally:
        path.write_text(text)
    return found | {"outcome": "survived" if code == 0 else "killed"}


def main(arguments: list[str] | None = None) -> None:
    """Draw, plant, test, and keep what was seen after each mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=25, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[Path(p).name for p in PACKAGES])
    chosen = parser.parse_args(arguments)
    done = json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else []
    keys = ("file", "line", "operator", "k")
    known = {tuple(m[key] for key in keys) for m in done}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "landscape"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        for package, tests in PACKAGES.items():
            if chosen.only not in (None, Path(package).name):
                continue
            drawn = draw(package, chosen.each, chosen.seed)
            drawn = [m for m in drawn if tuple(m[key] for key in keys) not in known]
            lines = passing(folder, package, tests) if drawn else {}
            for mutant in drawn:
                reached = lines.get(mutant["file"], {}).get(mutant["line"], [])
                done.append(met(folder, mutant, reached))
                print(
                    done[-1]["outcome"], mutant["file"], mutant["line"], done[-1]["is"], flush=True
                )
                RESULTS.write_text(
                    json.dumps(
                        {"versions": versions(), "seed": chosen.seed, "mutants": done}, indent=1
                    )
                    + "\n"
                )


if __name__ == "__main__":
    main()
