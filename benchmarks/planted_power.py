"""How often the page finds flatness where flatness is the cause: over seeds and variants.

    python -m benchmarks.planted_power --studies 200        # goes on with what the file has
    python -m benchmarks.planted_power --anew               # after a change of the rules

Flatness makes four fifths of the variance of the outcome between variants. Both simulators are
asked: the plain one (`planted.py`) and the rough one (`planted_rough.py`). Variants are counted as
the page counts them, SGD among them and the two controls not. Beside the power: how often anything
on these pages is false. Writes figures/data/power.planted_power.nc after every few studies of a
point, which `analysis_scripts/fig_power.py` draws.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from benchmarks import planted, planted_rough
from landscape import results
from landscape.results import Variable

OUT = Path(__file__).parents[1] / "figures" / "data" / "power.planted_power.nc"
SEEDS, VARIANTS, SIMULATORS = (3, 5, 10, 20), (4, 8, 12), ("plain", "rough")
POINTS = [(s, v, n) for s in SIMULATORS for v in VARIANTS for n in SEEDS]
SHARES = {
    "supported": "flatness supported by some measure", "lambda1": "λ₁ supported",
    "false": "false anywhere",
}  # fmt: skip
TITLES = {
    "supported": "Studies that support flatness by some measure",
    "lambda1": "Studies that support flatness by λ₁",
    "false": "Studies with anything false on their page",
}
PART = 20  # studies of a point between two writes


def counts(simulator: str, variants: int, seeds: int, number: int, first: int) -> np.ndarray:
    """How many studies of `number`, from the one of index `first` on, are as each of `SHARES`."""
    if simulator == "plain":
        world = replace(planted.WORLDS["flatness"], variants=variants + 2, seeds=seeds)
        found = planted.simulate(world, number, first=first)
    else:
        rough = replace(planted_rough.WORLDS["flatness"], variants=variants, seeds=seeds)
        found = planted_rough.simulate(rough, number, first=first)
    return np.array([round(number * found.get(key, 0.0)) for key in SHARES.values()])


def known(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Studies so far by point, and how many of them are as each of `SHARES`."""
    ds = results.load(path)
    done = ds.studies.values.astype(int)
    return done, np.stack([np.rint(ds[name].values * done) for name in SHARES], 1).astype(int)


def write(path: Path, done: np.ndarray, seen: np.ndarray) -> None:
    """The shares of all points that have studies."""
    share = seen / np.maximum(done, 1)[:, None]
    tables = {
        name: Variable("point", share[:, i], "1", TITLES[name]) for i, name in enumerate(SHARES)
    }
    tables["studies"] = Variable("point", done, "1", "Simulated studies")
    simulators, variants, seeds = zip(*POINTS, strict=True)
    coords = {
        "simulator": ("point", np.array(simulators, dtype=object)),
        "variants": ("point", np.array(variants)), "seeds": ("point", np.array(seeds)),
    }  # fmt: skip
    ds = results.make("planted_power", tables, coords=coords, provenance={"explained": 0.8})
    results.save(ds, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every point, a few studies at a time, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--anew", action="store_true", help="leave out what the file has")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    done, seen = np.zeros(len(POINTS), int), np.zeros((len(POINTS), len(SHARES)), int)
    if options.out.exists() and not options.anew:
        done, seen = known(options.out)
    started = time.process_time()
    while (left := np.flatnonzero(done < options.studies)).size:
        i = int(left[np.argmin(done[left])])
        number = min(PART, options.studies - done[i])
        seen[i] += counts(*POINTS[i], number, first=int(done[i]))
        done[i] += number
        write(options.out, done, seen)
    for point, number, (supported, lambda1, false) in zip(POINTS, done, seen, strict=True):
        low, high = binomtest(int(supported), int(number)).proportion_ci(method="wilson")
        print(*point, f"supported {supported} of {number} [{low:.2f}, {high:.2f}],",
              f"by λ₁ {lambda1}, anything false {false}")  # fmt: skip
    print(f"{time.process_time() - started:.0f} CPU s")


if __name__ == "__main__":
    main()
