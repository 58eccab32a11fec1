"""How often the page finds flatness where flatness is the cause: over seeds and variants.

    python -m benchmarks.planted_power

Flatness makes four fifths of the variance of the outcome between variants. Both simulators are
asked: the plain one (`planted.py`) and the rough one (`planted_rough.py`). Variants are counted as
the page counts them, SGD among them and the two controls not. Beside the power: how often anything
on these pages is false. Writes figures/data/power.planted_power.nc, which
`analysis_scripts/fig_power.py` draws.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import planted, planted_rough
from landscape import results
from landscape.results import Variable

OUT = Path(__file__).parents[1] / "figures" / "data" / "power.planted_power.nc"
SEEDS, VARIANTS, SIMULATORS = (3, 5, 10, 20), (4, 8, 12), ("plain", "rough")
SHARES = {
    "supported": "flatness supported by some measure", "lambda1": "λ₁ supported",
    "false": "false anywhere",
}  # fmt: skip


def shares(simulator: str, variants: int, seeds: int, number: int) -> dict[str, float]:
    """Shares of studies: supported by some measure, by λ₁, and with anything false."""
    if simulator == "plain":
        world = replace(planted.WORLDS["flatness"], variants=variants + 2, seeds=seeds)
        found = planted.simulate(world, number)
    else:
        rough = replace(planted_rough.WORLDS["flatness"], variants=variants, seeds=seeds)
        found = planted_rough.simulate(rough, number)
    return {name: found.get(key, 0.0) for name, key in SHARES.items()}


def main() -> None:
    """Simulate every cell and write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    shape = (len(SIMULATORS), len(VARIANTS), len(SEEDS))
    table = {name: np.zeros(shape) for name in SHARES}
    for place in np.ndindex(*shape):
        simulator, variants, seeds = (
            axis[i] for axis, i in zip((SIMULATORS, VARIANTS, SEEDS), place, strict=True)
        )
        started = time.process_time()
        found = shares(simulator, variants, seeds, options.studies)
        for name, share in found.items():
            table[name][place] = share
        spent = time.process_time() - started
        print(simulator, variants, seeds, found, f"{spent:.0f} CPU s", flush=True)
    titles = {
        "supported": "Studies that support flatness by some measure",
        "lambda1": "Studies that support flatness by λ₁",
        "false": "Studies with anything false on their page",
    }
    places = list(np.ndindex(*shape))
    ds = results.make(
        "planted_power",
        {
            name: Variable("point", np.array([values[p] for p in places]), "1", titles[name])
            for name, values in table.items()
        },
        coords={
            "simulator": ("point", np.array([SIMULATORS[i] for i, _, _ in places], dtype=object)),
            "variants": ("point", np.array([VARIANTS[j] for _, j, _ in places])),
            "seeds": ("point", np.array([SEEDS[k] for _, _, k in places])),
        },
        provenance={"studies": options.studies, "explained": 0.8},
    )
    results.save(ds, options.out)


if __name__ == "__main__":
    main()
