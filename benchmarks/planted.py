"""Studies whose truth is planted, and how often the report says something false about them.

    python -m benchmarks.planted                # every world, 1 000 studies each
    python -m benchmarks.planted --studies 50 --worlds null confounded_by_radius

A world says what drives accuracy and flatness. A study of it is made of small Datasets like those
of `landscape run`, and read by the report's own code. Every claim that the page would print is then
held against the planted truth, by what the claim asserts and not by its words.
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats as laws

from benchmarks.sentences import asserted
from landscape.report.family import Claim
from landscape.report.study import StudyResults
from landscape.storage import StudyFolder

# Recipes in the order in which worlds of fewer variants take them.
RECIPES = (
    "sgd", "sam", "random_mask", "sgd_early", "asam", "fsam", "zsharp", "ssam_f", "sam_on",
    "ssam_d", "gsam", "lagnp", "looksam", "esam", "gnp", "wsam",
)  # fmt: skip
CONTROLS = ("sgd_early", "random_mask")
OUT = Path(__file__).parent / "results" / "planted.json"
RADII = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class World:
    """What is true of a study, before anything is sampled.

    drives: what log error is made of between variants: "nothing" (all variants are equal),
    "chance" (they differ for reasons that nothing measured knows), or "flatness", "radius", "loss".
    explained: the share of the variance of log error between variants that it makes; the rest is
    chance. flat_from: what flatness is made of: "nothing" (all equal), "chance", "radius", "loss".
    spread, flat_spread: standard deviations between variants of log error and of log curvature.
    seed_sd: of log error between seeds, common to all variants and a variant's own.
    noise: law of a variant's own seed noise. uneven: its scale differs by variant, up to fourfold.
    controls: whether random mask and early-stopped SGD are among the variants.
    """

    drives: str = "nothing"
    explained: float = 0.8
    flat_from: str = "nothing"
    variants: int = 12
    seeds: int = 5
    examples: int = 500
    accuracy: float = 0.9
    spread: float = 0.3
    flat_spread: float = 0.4
    seed_sd: tuple[float, float] = (0.1, 0.05)
    flat_sd: float = 0.1
    noise: str = "normal"
    uneven: bool = False
    controls: bool = True


WORLDS = {
    "null": World(),
    "null_heavy_tails": World(noise="t3"),
    "null_uneven": World(uneven=True),
    "null_outliers": World(noise="outliers"),
    "null_ten_seeds": World(seeds=10),
    "null_three_seeds": World(seeds=3),
    "flat_without_gain": World(flat_from="chance"),
    "gain_without_flatness": World(drives="chance"),
    "unrelated": World(drives="chance", flat_from="chance"),
    "unrelated_ten_seeds": World(drives="chance", flat_from="chance", seeds=10),
    "confounded_by_radius": World(drives="radius", flat_from="radius", seeds=10),
    "confounded_by_loss": World(drives="loss", flat_from="loss", seeds=10),
    "confounded_wholly": World(drives="radius", flat_from="radius", explained=1.0, seeds=10),
    "flatness": World(drives="flatness", flat_from="chance", seeds=10),
    "flatness_from_radius": World(drives="flatness", flat_from="radius", seeds=10),
    "flatness_five_seeds": World(drives="flatness", flat_from="chance"),
    "flatness_without_controls": World(
        drives="flatness", flat_from="chance", seeds=10, controls=False
    ),
}


@dataclass(frozen=True)
class Truth:
    """Expected values of every quantity by variant, on its own scale, and what drives accuracy."""

    world: World
    values: dict[str, dict[str, float]] = field(default_factory=dict)


def names_of(world: World) -> list[str]:
    """Variants of a world: SGD first."""
    pool = [name for name in RECIPES if world.controls or name not in CONTROLS]
    return pool[: world.variants]


def plant(world: World, rng: np.random.Generator) -> Truth:
    """Draw the variants of one study: log error, log curvature, radius and training loss."""
    names = names_of(world)
    n = len(names)
    radius = rng.uniform(0.1, 1.0, n)
    radius[[name.startswith("sgd") for name in names]] = 0.0
    log_loss = np.log(0.3) + 0.5 * rng.normal(size=n)
    latent = {
        "radius": (radius - 0.5) / 0.3, "loss": (log_loss - np.log(0.3)) / 0.5,
        "chance": rng.normal(size=n), "nothing": np.zeros(n),
    }  # fmt: skip
    flat = latent[world.flat_from].copy()
    if world.flat_from in ("radius", "loss"):
        flat = np.sqrt(0.8) * flat + np.sqrt(0.2) * rng.normal(size=n)
    latent["flatness"] = flat
    cause = latent["nothing" if world.drives in ("nothing", "chance") else world.drives]
    rest = 0.0 if world.drives == "nothing" else 1.0 - world.explained
    rest = 1.0 if world.drives == "chance" else rest
    gain = np.sqrt(world.explained) * cause + np.sqrt(rest) * rng.normal(size=n)
    log_error = np.log(1 - world.accuracy) - world.spread * gain
    values = {
        "log_error": np.minimum(log_error, np.log(0.8)), "log_curvature": -world.flat_spread * flat,
        "radius": radius, "log_loss": log_loss,
    }  # fmt: skip
    return Truth(world, {k: dict(zip(names, v.tolist(), strict=True)) for k, v in values.items()})


def _own_noise(world: World, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of variance one by (variant, seed)."""
    if world.noise == "t3":
        drawn = rng.standard_t(3, size=shape) / np.sqrt(3)
    else:
        drawn = rng.normal(size=shape)
    if world.noise == "outliers":
        drawn = np.where(rng.random(shape) < 0.05, drawn + 8 * np.sign(drawn), drawn)
    if world.uneven:
        drawn = drawn * np.geomspace(0.5, 2, shape[0])[rng.permutation(shape[0]), None]
    return drawn


def observe(truth: Truth, rng: np.random.Generator) -> dict[str, xr.Dataset]:
    """One study of a planted truth: Datasets as `landscape run` leaves them."""
    world = truth.world
    names = list(truth.values["log_error"])
    shape = (len(names), world.seeds)

    def column(key: str) -> np.ndarray:
        return np.array([truth.values[key][name] for name in names])[:, None]

    common, own = world.seed_sd
    shift = common * rng.normal(size=(1, world.seeds)) + own * _own_noise(world, shape, rng)
    error = np.clip(np.exp(column("log_error") + shift), 1e-4, 0.95)
    # Whether an example is right: its difficulty, what each variant makes of it, and chance. The
    # share over all possible examples is 1 - error whatever these are.
    parts = np.array([0.6, 0.2, 0.2])
    hard = np.sqrt(parts[0]) * rng.normal(size=(1, 1, world.examples))
    taste = np.sqrt(parts[1]) * rng.normal(size=(len(names), 1, world.examples))
    luck = np.sqrt(parts[2]) * rng.normal(size=(*shape, world.examples))
    correct = hard + taste + luck > laws.norm.ppf(error)[..., None]
    flat = column("log_curvature") + 0.05 * rng.normal(size=(1, world.seeds))
    curvature = 4 * np.exp(flat + world.flat_sd * _own_noise(world, shape, rng))
    loss = np.exp(column("log_loss") + 0.05 * rng.normal(size=shape))
    jitter = {
        key: np.exp(0.05 * rng.normal(size=shape)) for key in ("trace", "gaussian", "worst_case")
    }
    radius = column("radius") * np.exp(0.01 * rng.normal(size=shape))
    squared = np.array(RADII) ** 2
    tables: dict[str, dict[str, tuple[tuple[str, ...], np.ndarray]]] = {
        "generalization": {
            "test_accuracy": ((), correct.mean(-1)), "test_correct": (("example",), correct),
            "test_loss": ((), 3 * error), "train_loss": ((), loss),
            "train_accuracy": ((), np.exp(-loss)),
        },
        "top_eigenvalues": {
            "eigenvalue": (("rank",), curvature[..., None] * [1.0, 0.7]),
            "residual_norm": (("rank",), 1e-5 * curvature[..., None] * [1.0, 0.7]),
            "converged": (("rank",), np.ones((*shape, 2), bool)),
        },
        "hessian_trace": {"trace": ((), 15 * curvature * jitter["trace"])},
        "sharpness": {
            key: (("rho",), (curvature * jitter[key])[..., None] * squared)
            for key in ("gaussian", "worst_case")
        },
        "perturbation": {"rho_eff": ((), radius), "rho": ((), radius)},
    }  # fmt: skip
    return {
        name: _dataset(name, variables, names, world.seeds) for name, variables in tables.items()
    }


def _dataset(name: str, variables: dict[str, Any], names: list[str], seeds: int) -> xr.Dataset:
    data = {
        key: (("run", *dims), values.reshape(-1, *values.shape[2:]), {"units": "1"})
        for key, (dims, values) in variables.items()
    }
    variant = np.repeat(np.array(names, dtype=object), seeds)
    seed = np.tile(np.arange(seeds), len(names))
    coords = {
        "run": ("run", np.array([f"{v}-s{s}" for v, s in zip(variant, seed, strict=True)], object)),
        "variant": ("run", variant), "label": ("run", variant), "seed": ("run", seed),
        "setting": ("run", np.full(len(variant), "default", dtype=object)),
    }  # fmt: skip
    grids = {"sharpness": ("rho", np.array(RADII)), "top_eigenvalues": ("rank", np.arange(2))}
    if name in grids:
        dim, values = grids[name]
        coords[dim] = (dim, values)
    attrs = {"measurement": name, "landscape_schema": 1, "provenance": '{"bn": "eval"}'}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def make_study(truth: Truth, rng: np.random.Generator, declared: bool = True) -> StudyResults:
    """The study as the report reads it. `declared`: whether its file named the comparisons."""
    names = list(truth.values["log_error"])
    recipes = {name: "sgd" if name == "sgd_early" else name for name in names}
    compared = {"metric": "test_accuracy", "setting": "default", "references": ["sgd", "sam"]}
    resolved = {
        "name": "planted",
        "variants": {
            name: {
                "label": name, "recipe": recipes[name], "options": {},
                "training": {"epochs": 8 if name == "sgd_early" else 20},
            }
            for name in names
        },
        "settings": {"default": {"title": ""}},
        "comparisons": compared if declared else None,
    }  # fmt: skip
    return StudyResults(StudyFolder(Path()), resolved, observe(truth, rng))


# Where the truth of a compared quantity stands, and its sign on the scale of comparison.
TRUTHS = {
    "test_accuracy": "log_error", "lambda1": "log_curvature", "trace": "log_curvature",
    "gaussian": "log_curvature", "worst": "log_curvature", "train_loss": "log_loss",
    "rho_eff": "radius",
}  # fmt: skip


def true_causes(world: World) -> set[str]:
    """Hypotheses that are right in a world: what drives log error, in its predicted direction.

    Larger radii are better where radius drives, so "smaller radius" is never right; "fitted more
    slowly" is where loss drives.
    """
    if world.drives == "flatness":
        return {"flatter_lambda1", "flatter_trace", "flatter_gaussian", "flatter_worst"}
    return {"fitting"} if world.drives == "loss" else set()


def goes_with(world: World, quantity: str) -> bool:
    """Whether a quantity is associated with log error over the population of variants."""
    flat = quantity in ("lambda1", "trace", "gaussian", "worst")
    if flat:
        return world.drives == "flatness" or world.drives == world.flat_from != "nothing"
    by_flatness = world.drives == "flatness" and world.flat_from == "loss"
    return quantity == "train_loss" and (world.drives == "loss" or by_flatness)


def is_false(claim: Claim, truth: Truth) -> bool:
    """Whether a claim contradicts the planted truth; hedges assert nothing."""
    if claim.kind in ("better", "outside", "within"):
        values = truth.values[TRUTHS[claim.quantity]]
        ends = [values[claim.other], values[claim.subject]]
        if claim.quantity == "rho_eff":  # compared on a logarithmic scale, as all of them
            ends = [math.log(end) for end in ends]
        gain = ends[0] - ends[1]
        if claim.kind == "within":
            return abs(gain) >= claim.margin
        return gain <= (claim.margin if claim.kind == "outside" else 0.0)
    world = truth.world
    if claim.kind == "associated":
        return not goes_with(world, claim.quantity)
    if claim.subject in ("mask", "early_stopping"):
        return _trial_is_false(claim, truth)
    right = claim.subject in true_causes(world)
    if claim.kind == "supported":
        return not right
    # "Confounded" says that the two cannot be told apart, which holds where one makes the other.
    apart = world.flat_from in ("chance", "nothing")
    return right and (claim.kind == "contradicted" or (claim.kind == "confounded" and apart))


def _trial_is_false(claim: Claim, truth: Truth) -> bool:
    """No world gives a mask or a schedule an effect of its own: each variant has its log error."""
    values = truth.values["log_error"]
    if claim.subject == "mask":
        about = [name for name in ("zsharp", "ssam_f", "ssam_d") if name in values]
        better = [values["random_mask"] - values[name] > 0 for name in about]
        most = sum(better) > len(better) / 2
        return (claim.kind == "supported" and not most) or (
            claim.kind == "contradicted" and all(better)
        )
    better = [v for n, v in values.items() if n not in CONTROLS and v < values["sgd"]]
    above = [v < values["sgd_early"] for v in better]
    return (claim.kind == "supported" and bool(above) and all(above)) or (
        claim.kind == "contradicted" and not any(above)
    )


@dataclass(frozen=True)
class Read:
    """What a page said of one study: false claims by place, the word of each hypothesis."""

    false: dict[str, int]
    words: dict[str, str]


def read_page(study: StudyResults, truth: Truth) -> Read:
    """Everything that the page of a study asserts, held against the truth."""
    said, places = asserted(study)
    false = {place: sum(is_false(c, truth) for c in claims) for place, claims in places.items()}
    return Read(false, {one.key: one.word for one in said.verdicts})


def simulate(world: World, number: int, *, first: int = 0) -> dict[str, float]:
    """Shares of studies with a false claim (anywhere, by place) and with each word on flatness."""
    counts: dict[str, float] = {}
    for index in range(first, first + number):
        rng = np.random.default_rng([20260, index])
        truth = plant(world, rng)
        page = read_page(make_study(truth, rng), truth)
        seen = [f"false in {place}" for place, n in page.false.items() if n]
        seen += ["false anywhere"] if seen else []
        flat = [word for key, word in page.words.items() if key.startswith("flatter_")]
        seen += [f"flatness {word} by some measure" for word in dict.fromkeys(flat)]
        seen += [f"λ₁ {page.words['flatter_lambda1']}"]
        for name in seen:
            counts[name] = counts.get(name, 0.0) + 1
    counts.setdefault("false anywhere", 0.0)
    return {name: count / number for name, count in sorted(counts.items())}


def bound(number: int) -> float:
    """5 % and two standard errors of a share of `number` studies."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / number)


def _one(task: tuple[World, int, int]) -> tuple[int, dict[str, float]]:
    world, number, first = task
    return number, simulate(world, number, first=first)


def simulate_in_parts(world: World, number: int, processes: int) -> dict[str, float]:
    """`simulate` over processes; the studies are the same."""
    size = max(1, min(25, number))
    tasks = [(world, min(size, number - at), at) for at in range(0, number, size)]
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(_one, tasks))
    names = sorted({name for _, part in parts for name in part})
    return {name: sum(n * part.get(name, 0.0) for n, part in parts) / number for name in names}


def main() -> None:
    """Simulate worlds and write the shares to a file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.worlds:
        started = time.monotonic()
        shares = simulate_in_parts(WORLDS[name], options.studies, options.processes)
        found[name] = {
            "world": asdict(WORLDS[name]), "studies": options.studies, "shares": shares,
            "bound": bound(options.studies),
        }  # fmt: skip
        options.out.parent.mkdir(exist_ok=True, parents=True)
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"{name} ({options.studies} studies, {time.monotonic() - started:.0f} s)")
        for key, share in shares.items():
            print(f"  {share:6.3f}  {key}", flush=True)


if __name__ == "__main__":
    main()
