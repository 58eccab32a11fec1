"""Studies as people bring them, with a planted truth: rough data that no rule was tuned on.

    python -m benchmarks.planted_rough                          # every world
    python -m benchmarks.planted_rough --studies 50 --worlds null irrelevant

Beside `planted.py`, whose noise is normal and whose effects are linear, each study here draws its
own roughness: heavy-tailed or skewed seeds whose scale differs by variant, effects that bend,
saturate or jump, four measures of flatness that agree only in part and carry multiplicative noise,
a ceiling of accuracy, small test sets with ties, unequal numbers of seeds, diverged runs, two
settings, a variant at several rho, missing measurements, metrics that are better when lower, and
SGD without a radius. The page is read twice: by what it claims, and by its printed sentences
(`benchmarks.sentences`), which have to be known, each one, and true.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.sentences import asserted
from landscape.metrics import FLATNESS
from landscape.report.family import Claim
from landscape.report.study import StudyResults
from landscape.storage import StudyFolder

OUT = Path(__file__).parent / "results" / "planted_rough.json"
NAMES = (
    "sgd", "sam", "asam", "zsharp", "gsam", "ssam_f", "sam_on", "looksam", "fsam", "esam", "lagnp",
    "wsam", "friendly_sam", "msam", "ssam_d", "vasso",
)  # fmt: skip
RADII = (0.02, 0.1, 0.5)
MASKS = ("zsharp", "ssam_f", "ssam_d")


@dataclass(frozen=True)
class World:
    """What is true, apart from the roughness that each study draws.

    cause: what makes variants better: "nothing", "chance" (something that is not measured),
    "flatness", "sharpness" (flatter is worse), "radius" or "loss". flat_from: what makes variants
    flat: "nothing", "chance", "radius" or "loss". explained: share of the variance of the outcome
    between variants that the cause makes, through a monotone curve. variants: with SGD, without
    controls. calm: without diverged runs, missing measurements and unequal seeds.
    """

    cause: str
    flat_from: str
    explained: float = 0.8
    variants: int = 10
    seeds: int = 5
    spread: float = 0.35
    calm: bool = False


WORLDS = {
    "null": World("nothing", "nothing"),
    "null_three_seeds": World("nothing", "nothing", seeds=3),
    "null_ten_seeds": World("nothing", "nothing", seeds=10),
    "flatter_and_no_better": World("nothing", "chance"),
    "irrelevant": World("chance", "chance", seeds=10),
    "confounded_by_radius": World("radius", "radius", seeds=10),
    "confounded_by_loss": World("loss", "loss", seeds=10),
    "reverse": World("sharpness", "chance", seeds=10),
    "flatness": World("flatness", "chance", seeds=10, calm=True),
    "flatness_rough": World("flatness", "chance", seeds=10),
}


@dataclass(frozen=True)
class Row:
    """A row of the study: a variant at one value of its axis."""

    name: str
    recipe: str
    family: str
    axes: dict[str, float]
    control: bool


@dataclass(frozen=True)
class Truth:
    """Expected values by (setting, quantity) and row, on the scale where larger is better."""

    world: World
    metric: str
    rows: tuple[Row, ...]
    values: dict[tuple[str, str], dict[str, float]]
    radius_sign: int  # of the radius that is better, where the radius is the cause
    loss_sign: int

    def gain(self, setting: str, quantity: str, a: str, b: str) -> float:
        """How much better a is than b."""
        known = self.values[setting, quantity]
        return known[a] - known[b]


def _standard(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


CURVES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: x,
    lambda x: np.tanh(1.5 * x),
    lambda x: np.exp(0.7 * x),
    lambda x: np.sign(x) * np.abs(x) ** 1.5,
    lambda x: np.floor(2 * x),  # steps, with ties
    lambda x: np.minimum(x, 0.5),  # saturates
)


def _bend(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A monotone curve of a latent, standardized again."""
    return _standard(CURVES[rng.integers(len(CURVES))](x))


def _rows(world: World, rng: np.random.Generator) -> tuple[Row, ...]:
    rows: list[Row] = []
    swept = bool(rng.random() < 0.3)
    for name in NAMES[: world.variants]:
        if swept and name == "sam" and world.variants > 5:
            rows += [
                Row(f"sam_{r:g}".replace(".", "p"), "sam", "sam", {"rho": r}, False) for r in RADII
            ]
            continue
        rows.append(Row(name, name, name, {}, False))
    rows = rows[: world.variants]
    if world.calm or rng.random() < 0.8:
        rows.append(Row("noise_mask", "random_mask", "noise_mask", {}, True))
        rows.append(Row("short", "sgd", "short", {}, True))
    return tuple(rows)


def plant(world: World, rng: np.random.Generator) -> Truth:
    """Draw what is true of one study."""
    rows = _rows(world, rng)
    n = len(rows)
    quiet = np.array([row.recipe == "sgd" for row in rows])
    metric = str(rng.choice(["test_accuracy", "test_accuracy", "test_loss", "val_accuracy"]))
    settings = ["a"] if rng.random() < 0.6 else ["a", "b"]
    radius_sign, loss_sign = (int(s) for s in rng.choice([-1, 1], 2))
    values: dict[tuple[str, str], dict[str, float]] = {}
    for setting in settings:
        log_radius = rng.normal(-1.5, 0.7, n)
        for i, row in enumerate(rows):
            log_radius[i] = math.log(row.axes["rho"]) if row.axes else log_radius[i]
        log_loss = rng.standard_t(4, n) * 0.5 - 1.5
        latents = {
            "radius": np.where(quiet, log_radius.min() - 0.5, log_radius), "loss": log_loss,
            "chance": rng.normal(size=n), "nothing": np.zeros(n),
        }  # fmt: skip
        signs = {"radius": radius_sign, "loss": loss_sign}
        flat = signs.get(world.flat_from, 1) * _standard(latents[world.flat_from])
        if world.flat_from in ("radius", "loss"):
            flat = _standard(_bend(flat, rng) + 0.6 * rng.normal(size=n))
        source = {"flatness": flat, "sharpness": -flat, "nothing": np.zeros(n)}.get(world.cause)
        if source is None:
            source = signs.get(world.cause, 1) * _standard(latents[world.cause])
        if world.cause == "chance":
            source = rng.normal(size=n)
        rest = 0.0 if world.cause == "nothing" else math.sqrt(1 - world.explained)
        cause = np.zeros(n) if world.cause == "nothing" else _bend(_standard(source), rng)
        gain = math.sqrt(world.explained) * cause + rest * rng.normal(size=n)
        known = {metric: world.spread * gain, "train_loss": -log_loss, "rho_eff": -log_radius}
        for key in FLATNESS:
            # Each measure sees what the others see, and something of its own.
            own = 0.0 if world.flat_from == "nothing" else 0.3
            known[key] = 0.5 * flat + own * rng.normal(size=n) * (key != "lambda1")
        names = [row.name for row in rows]
        for key, column in known.items():
            values[setting, key] = dict(zip(names, np.asarray(column, float).tolist(), strict=True))
    return Truth(world, metric, rows, values, radius_sign, loss_sign)


@dataclass
class _Rough:
    """The roughness of one study: how its seeds scatter and what of it is missing."""

    rng: np.random.Generator
    df: float
    skew: bool
    uneven: float
    scale: float = 1.0
    kept: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def noise(self, rows: int, seeds: int) -> np.ndarray:
        """(rows, seeds), mean zero: heavy tails or skew, a scale of each row's own."""
        if self.skew:
            drawn = self.rng.exponential(size=(rows, seeds)) - 1
        else:
            drawn = self.rng.standard_t(self.df, size=(rows, seeds))
            drawn = drawn / math.sqrt(self.df / (self.df - 2))
        return drawn * np.exp(self.uneven * self.rng.normal(size=(rows, 1)))


def _shares(truth: Truth, setting: str, rough: _Rough, seeds: int) -> tuple[np.ndarray, Any]:
    """The metric's raw values (rows, seeds), and which test examples are right, if they are."""
    rng, n = rough.rng, len(truth.rows)
    gain = np.array(list(truth.values[setting, truth.metric].values()))[:, None]
    common = 0.1 * rng.normal(size=(1, seeds)) * rng.uniform(0.7, 1.3, (n, 1))
    log = -gain + (common if truth.world.cause != "nothing" else common.mean(0, keepdims=True))
    log = log + 0.06 * rough.noise(n, seeds)
    if truth.metric == "test_loss":
        return np.exp(log + rng.normal(-1, 1)), None
    error = np.clip(np.exp(log + math.log(rng.choice([0.02, 0.08, 0.25]))), 1e-4, 0.9)
    examples = int(rng.choice([100, 300, 1000]))
    if truth.metric == "val_accuracy" or rng.random() < 0.3:
        return 1 - error, None
    difficulty = rng.random((1, 1, examples))
    mixed = np.where(rng.random((n, seeds, examples)) < 0.6, difficulty, 1)
    fresh = rng.random((n, seeds, examples))
    draws = np.where(mixed < 1, difficulty, fresh)
    right = draws > error[..., None]
    return right.mean(-1), right


def observe(truth: Truth, rng: np.random.Generator) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Results as `landscape run` leaves them, and how the trainings went."""
    world, rows = truth.world, truth.rows
    rough = _Rough(
        rng, float(rng.choice([2.5, 4, 30])), bool(rng.random() < 0.25), rng.choice([0.0, 0.3, 0.6])
    )
    settings = list(dict.fromkeys(setting for setting, _ in truth.values))
    parts: dict[str, list[dict[str, Any]]] = {}
    ended: list[tuple[str, str, int, str]] = []
    gone = str(rng.choice(["", "hessian_trace", "sharpness"], p=[0.7, 0.15, 0.15]))
    gone = "" if world.calm else gone
    examples: dict[str, int] = {}
    for setting in settings:
        n, seeds = len(rows), world.seeds
        raw, right = _shares(truth, setting, rough, seeds)
        loss = np.exp(_column(truth, setting, "train_loss", -1) + 0.1 * rough.noise(n, seeds))
        radius = np.exp(_column(truth, setting, "rho_eff", -1) + 0.02 * rng.normal(size=(n, seeds)))
        shaken = float(rng.choice([0.1, 0.25]))
        flat = {
            key: np.exp(_column(truth, setting, key, -1) + shaken * rough.noise(n, seeds))
            for key in FLATNESS
        }
        for i, row in enumerate(rows):
            lost = [] if world.calm else _lost(rng, seeds)
            have = seeds if world.calm or rng.random() > 0.2 else max(2, seeds - 2)
            for s in range(have):
                key = (row.name, setting, s)
                ended.append((*key, "diverged" if s in lost else "trained"))
                if s in lost:
                    continue
                outcome = {truth.metric: raw[i, s], "train_loss": loss[i, s],
                           "train_accuracy": math.exp(-min(loss[i, s], 50))}  # fmt: skip
                if right is not None:
                    outcome["test_correct"] = right[i, s]
                    examples[setting] = right.shape[-1]
                add = lambda name, values, key=key: parts.setdefault(name, []).append(  # noqa: E731
                    {"key": key, **values}
                )
                add("generalization", outcome)
                ranks = np.array([1.0, 0.6]) * flat["lambda1"][i, s]
                add("top_eigenvalues", {"eigenvalue": ranks, "residual_norm": 1e-4 * ranks,
                                        "converged": np.ones(2, bool)})  # fmt: skip
                if gone != "hessian_trace":
                    add("hessian_trace", {"trace": 12 * flat["trace"][i, s]})
                if gone != "sharpness" and not (not world.calm and row.name == "gsam"):
                    grid = np.array(RADII) ** 1.8
                    add("sharpness", {"gaussian": flat["gaussian"][i, s] * grid,
                                      "worst_case": 3 * flat["worst"][i, s] * grid})  # fmt: skip
                if row.recipe != "sgd":
                    add("perturbation", {"rho_eff": radius[i, s], "rho": radius[i, s]})
    if len(set(examples.values())) != 1 or len(examples) != len(settings):
        # One table has one number of examples.
        for part in parts["generalization"]:
            part.pop("test_correct", None)
    data = {name: dataset(name, found, rows) for name, found in parts.items()}
    return data, trainings(ended, rows)


def _column(truth: Truth, setting: str, key: str, sign: int) -> np.ndarray:
    return sign * np.array(list(truth.values[setting, key].values()))[:, None]


def _lost(rng: np.random.Generator, seeds: int) -> list[int]:
    """Seeds of a row that diverge: rarely any."""
    return [s for s in range(seeds) if rng.random() < 0.3] if rng.random() < 0.04 else []


def _coords(keys: list[tuple[str, str, int]], rows: tuple[Row, ...]) -> dict[str, Any]:
    known = {row.name: row for row in rows}
    strings = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    return {
        "run": ("run", strings(f"{v}-{g}-s{s}" for v, g, s in keys)),
        "variant": ("run", strings(v for v, _, _ in keys)),
        "label": ("run", strings(v for v, _, _ in keys)),
        "setting": ("run", strings(g for _, g, _ in keys)),
        "seed": ("run", np.array([s for _, _, s in keys])),
        "family": ("run", strings(known[v].family for v, _, _ in keys)),
        "axes": ("run", strings(json.dumps(known[v].axes) for v, _, _ in keys)),
    }


DIMS = {
    "eigenvalue": ("rank",), "residual_norm": ("rank",), "converged": ("rank",),
    "gaussian": ("rho",), "worst_case": ("rho",), "test_correct": ("example",),
}  # fmt: skip


def dataset(name: str, parts: list[dict[str, Any]], rows: tuple[Row, ...]) -> xr.Dataset:
    keys = [part["key"] for part in parts]
    names = [key for key in parts[0] if key != "key"]
    data = {
        key: (("run", *DIMS.get(key, ())), np.array([part[key] for part in parts]), {"units": "1"})
        for key in names
    }
    coords = _coords(keys, rows)
    if name == "sharpness":
        coords["rho"] = ("rho", np.array(RADII))
    if name == "top_eigenvalues":
        coords["rank"] = ("rank", np.arange(2))
    attrs = {"measurement": name, "landscape_schema": 1, "provenance": '{"bn": "eval"}'}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def trainings(ended: list[tuple[str, str, int, str]], rows: tuple[Row, ...]) -> xr.Dataset:
    status = np.array([one[-1] for one in ended], dtype=object)
    said = np.array(["lost at step 7" if s == "diverged" else "" for s in status], dtype=object)
    count = np.full(len(ended), 100.0)
    columns = {"status": status, "message": said, "num_steps": count, "num_skipped": 0 * count,
               "arithmetic": np.full(len(ended), "", dtype=object)}  # fmt: skip
    data = {key: ("run", values, {"units": "1"}) for key, values in columns.items()}
    return xr.Dataset(data, coords=_coords([one[:3] for one in ended], rows))


def make_study(truth: Truth, rng: np.random.Generator) -> StudyResults:
    """The study as the report reads it."""
    asks = bool(rng.random() < 0.3)
    data, trainings = observe(truth, rng)
    return study_of(truth, data, trainings, asks=asks, both=bool(rng.random() < 0.7))


def study_of(
    truth: Truth, data: dict[str, xr.Dataset], trainings: xr.Dataset, *, asks: bool, both: bool
) -> StudyResults:
    """The study that results are of. asks: it asks a question; both: SAM is a reference too."""
    rows = truth.rows
    families = list(dict.fromkeys(row.family for row in rows))
    questions = []
    if asks and "asam" in families:
        questions.append({"asked": "Is asam better than sgd?", "pairs": [["asam", "sgd"]]})
    recipes = {row.family: row.recipe for row in rows} | {row.name: row.recipe for row in rows}
    resolved = {
        "name": "rough",
        "variants": {
            name: {
                "label": name, "recipe": recipe, "options": {},
                "training": {"epochs": 8 if name == "short" else 20},
            }
            for name, recipe in recipes.items()
        },
        "settings": {s: {"title": s} for s in dict.fromkeys(s for s, _ in truth.values)},
        "comparisons": {
            "metric": truth.metric, "setting": "a", "questions": questions,
            "references": ["sgd", "sam"] if both else ["sgd"],
        },
    }  # fmt: skip
    return StudyResults(StudyFolder(Path()), resolved, data, trainings)


def true_causes(truth: Truth) -> set[str]:
    """Hypotheses that are right."""
    world = truth.world
    if world.cause == "flatness":
        return {f"flatter_{key}" for key in FLATNESS}
    if world.cause == "radius" and truth.radius_sign < 0:
        return {"radius"}
    if world.cause == "loss" and truth.loss_sign > 0:
        return {"fitting"}
    return set()


def goes_with(truth: Truth, quantity: str) -> bool:
    """Whether the hypothesis's quantity is associated with the outcome as the hypothesis says."""
    world = truth.world
    if quantity in FLATNESS:
        return world.cause == "flatness" or world.cause == world.flat_from in ("radius", "loss")
    if quantity == "train_loss":
        through = world.cause == "flatness" and world.flat_from == "loss"
        return (world.cause == "loss" or through) and truth.loss_sign > 0
    if quantity == "rho_eff":
        through = world.cause == "flatness" and world.flat_from == "radius"
        return (world.cause == "radius" or through) and truth.radius_sign < 0
    return False


def is_false(claim: Claim, truth: Truth) -> bool:
    """Whether a claim contradicts the truth; hedges assert nothing."""
    if claim.kind in ("better", "outside", "within"):
        gain = truth.gain(claim.setting, claim.quantity, claim.subject, claim.other)
        if claim.kind == "within":
            return abs(gain) >= claim.margin
        return gain <= (claim.margin if claim.kind == "outside" else 0.0)
    if claim.kind == "associated":
        return not goes_with(truth, claim.quantity)
    if claim.subject in ("mask", "early_stopping"):
        return _trial_is_false(claim, truth)
    right = claim.subject in true_causes(truth)
    if claim.kind == "supported":
        return not right
    apart = truth.world.flat_from in ("chance", "nothing")
    return right and (claim.kind == "contradicted" or (claim.kind == "confounded" and apart))


def _trial_is_false(claim: Claim, truth: Truth) -> bool:
    """Each variant has its own outcome; no mask and no schedule has an effect besides."""
    control = "noise_mask" if claim.subject == "mask" else "short"
    about = [r.name for r in truth.rows if not r.control]
    if claim.subject == "mask":
        about = [r.name for r in truth.rows if r.recipe in MASKS]
    else:
        about = [r for r in about if truth.gain(claim.setting, truth.metric, r, "sgd") > 0]
    above = [truth.gain(claim.setting, truth.metric, row, control) > 0 for row in about]
    most = sum(above) > len(above) / 2
    if claim.subject == "mask":
        return most == (claim.kind == "contradicted") and (claim.kind == "supported" or all(above))
    return (claim.kind == "supported" and bool(above) and all(above)) or (
        claim.kind == "contradicted" and not any(above)
    )


@dataclass(frozen=True)
class Read:
    """What a page said of one study: false claims by place, and each hypothesis's word."""

    false: Counter[str]
    words: dict[str, str]
    examples: tuple[str, ...]


def read_page(study: StudyResults, truth: Truth) -> Read:
    """Everything that the page asserts, by its claims and by its printed sentences."""
    said, places = asserted(study)
    false: Counter[str] = Counter()
    examples = []
    for place, claims in places.items():
        wrong = [claim for claim in claims if is_false(claim, truth)]
        false[place] += len(wrong)
        examples += [f"{place}: {claim}" for claim in wrong]
    first = {one.key: one.word for one in reversed(said.verdicts)}
    return Read(false, first, tuple(examples))


def simulate(world: World, number: int, *, first: int = 0) -> dict[str, float]:
    """Shares of studies with a false statement, by place, and with each word on flatness."""
    counts: Counter[str] = Counter({"false anywhere": 0})
    for index in range(first, first + number):
        rng = np.random.default_rng([411, index])
        truth = plant(world, rng)
        page = read_page(make_study(truth, rng), truth)
        seen = [f"false in {place}" for place, n in page.false.items() if n]
        seen += ["false anywhere"] if seen else []
        flat = [word for key, word in page.words.items() if key.startswith("flatter_")]
        seen += [f"flatness {word} by some measure" for word in dict.fromkeys(flat)]
        seen += [f"λ₁ {page.words['flatter_lambda1']}"] if "flatter_lambda1" in page.words else []
        counts.update(seen)
    return {name: count / number for name, count in sorted(counts.items())}


def main() -> None:
    """Simulate worlds and write the shares to a file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.worlds:
        started = time.process_time()
        shares = simulate(WORLDS[name], options.studies)
        found[name] = {
            "world": asdict(WORLDS[name]), "studies": options.studies, "shares": shares,
            "bound": 0.05 + 2 * math.sqrt(0.05 * 0.95 / options.studies),
        }  # fmt: skip
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"{name} ({options.studies} studies, {time.process_time() - started:.0f} CPU s)")
        for key, share in shares.items():
            print(f"  {share:6.3f}  {key}", flush=True)


if __name__ == "__main__":
    main()
