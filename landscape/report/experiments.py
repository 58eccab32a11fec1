"""The study that would decide what this one does not: its own file, changed where it must be."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from landscape import toml
from landscape.metrics import METRICS
from landscape.report import words
from landscape.report.family import Difference, Family
from landscape.report.study import StudyResults
from landscape.storage import folder_name, slug

# More seeds than this are not proposed: the effect is then too small for this problem.
MOST_SEEDS = 40
CONTROL_DENSITY = 0.05


@dataclass(frozen=True)
class Experiment:
    """What to run next, in words, and as a study file (empty where this study has none)."""

    name: str
    what: str
    text: str


@dataclass(frozen=True)
class _Next:
    """A study file that is being changed, and what it follows from."""

    family: Family
    setting: str
    name: str  # of the quantity that a change is about
    given: dict[str, Any]

    def grids(self) -> list[dict[str, Any]]:
        """The grids of the file, as a list that may be changed."""
        return self.given["grid"]

    def rho(self, variant: str) -> float:
        """The radius of a variant as the study resolved it; NaN for one that has none."""
        known = (self.family.study.resolved.get("variants") or {}).get(variant) or {}
        options = known.get("options") or {}
        own = self.given.get("variants", {}).get(variant) or {}
        rho = own.get("rho", options.get("rho", math.nan))
        return float(rho) if isinstance(rho, int | float) else math.nan


def deciding(
    family: Family, setting: str, key: str, word: str, needs: Sequence[str]
) -> Experiment | None:
    """The experiment for one undecided hypothesis; None where nothing is needed.

    needs: "controls", "seeds", "variants:<how many more>", "measure:<quantity>",
    "match:<quantity>".
    """
    if not needs:
        return None
    study = family.study
    given = _study_file(study)
    given["grid"] = _grids_of(given, study, setting)
    said = []
    for need in needs:
        kind, _, name = need.partition(":")
        said.append(_CHANGES[kind](_Next(family, setting, name, given)))
    name = f"{folder_name(setting)}-{slug(key)}"
    given["name"] = f"{study.resolved.get('name', 'study')}-{name}"
    given["question"] = f"{key.replace('_', ' ')}: {word}. What would decide it?"
    head = f"# {'; '.join(said)}.\n#\n#     landscape run {name}.toml\n"
    # Modules and files that it names lie beside the first study file.
    if base := str(study.resolved.get("base", "")):
        given["base"] = base
    # Weights from elsewhere are not ours to train: what to do is said, and no file is written.
    ours = given["grid"] and not any("weights" in grid for grid in given["grid"])
    given.pop("run", None)
    return Experiment(name, "; ".join(said), head + toml.dumps(given) if ours else "")


def _grids_of(given: dict[str, Any], study: StudyResults, setting: str) -> list[dict[str, Any]]:
    """The grids of one setting; a grid that names none is of the only one."""
    grids = given.get("grid", [])
    grids = [grids] if isinstance(grids, dict) else list(grids)
    found = []
    for grid in grids:
        named = grid.get("setting", setting if len(study.settings) == 1 else study.settings)
        if setting in (named if isinstance(named, list) else [named]):
            found.append(grid | ({"setting": setting} if "setting" in grid else {}))
    return found


def _study_file(study: StudyResults) -> dict[str, Any]:
    path = study.folder.study_toml
    if not path.is_file():
        return {}
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _more_seeds(after: _Next) -> str:
    """As many seeds as resolve the margin, or each difference as large as it looks."""
    references = after.family.study.references(after.setting)
    needed, now = 0, 0
    for one in _open(after, references):
        d = one.decision
        target = max(abs(d.interval.estimate), d.margin)
        now = max(now, d.interval.n)
        needed = max(needed, math.ceil(d.interval.n * (d.detectable / target) ** 2))
    more = needed > MOST_SEEDS
    needed = max(min(needed, MOST_SEEDS), now + 3, 8)
    for grid in after.grids():
        grid["seed"] = list(range(needed))
    said = f"{needed} seeds" + (f" instead of {now}" if now else "")
    return said + (", which may not be enough for effects as small as the margin" if more else "")


def _open(after: _Next, references: Sequence[str]) -> list[Difference]:
    """Variants whose difference to the first reference is not resolved."""
    family = after.family
    found = family.counted(family.to(after.setting, references[0])) if references else []
    open_ = [one for one in found if not one.sign and not one.decision.equivalent]
    return [one for one in open_ if math.isfinite(one.decision.detectable)]


def _controls(after: _Next) -> str:
    """A random mask at the radius of SAM, and SGD with a shorter schedule, where there is none."""
    grids = after.grids()
    study = after.family.study
    absent = {
        name: text
        for name, recipe, text in (
            ("control_mask", "random_mask", "a random mask"),
            ("control_early", "sgd", "SGD stopped early"),
        )
        if not study.controls(after.setting, recipe)
    }
    if grids:
        tables = after.given.setdefault("variants", {})
        radii = [rho for name in tables if math.isfinite(rho := after.rho(name))]
        rho = radii[0] if radii else 0.1
        epochs = int(after.given.get("training", {}).get("epochs", 20))
        made = {
            "control_mask": {
                "recipe": "random_mask", "label": "Random mask", "rho": rho,
                "density": CONTROL_DENSITY, "one_d": "none",
            },
            "control_early": {
                "recipe": "sgd", "label": "SGD, stopped early",
                "training": {"epochs": max(1, round(0.4 * epochs))},
            },
        }  # fmt: skip
        tables.update({name: made[name] for name in absent})
        grid: dict[str, Any] = {"variant": list(absent)}
        for key in ("setting", "seed"):
            if key in grids[0]:
                grid[key] = grids[0][key]
        grids.append(grid)
    said = words.listing(list(absent.values()))
    return f"{said}, as {'controls' if len(absent) > 1 else 'a control'}"


# Recipes whose options all have defaults, of unlike kinds; the first ones that a study lacks join.
_MORE = (
    "sam", "asam", "fsam", "gsam", "zsharp", "sam_on", "ssam_d", "gnp", "vasso", "stable_sam",
    "wsam", "msam",
)  # fmt: skip


def _variants(after: _Next) -> str:
    """More variants: dose and response are asked over them, and a few are no line."""
    study = after.family.study
    absent = [recipe for recipe in _MORE if recipe not in study.recipes.values()]
    added = absent[: int(after.name)]
    grids = after.grids()
    if grids and added:
        keys = ("setting", "seed")
        grids.append({"variant": added} | {k: grids[0][k] for k in keys if k in grids[0]})
    more = words.count(int(after.name), "more variant")
    return f"{more} ({words.listing(added)}; choose their rho with `landscape tune`)"


def _measure(after: _Next) -> str:
    """The measurement of a quantity that was not conditioned on."""
    wanted = METRICS[after.name].measurement
    asked = after.given.get("measure", {}).get("measurements")
    if isinstance(asked, list) and wanted not in asked:
        asked.append(wanted)
    return f"{METRICS[after.name].name} measured as well ({wanted})"


def _match(after: _Next) -> str:
    """Each variant at several radii or epochs, so that the confounder can be made equal."""
    if after.name == "train_loss":
        epochs = int(after.given.get("training", {}).get("epochs", 20))
        steps = sorted({max(1, epochs // 2), epochs, 2 * epochs})
        for grid in after.grids():
            grid["epochs"] = steps
        shown = words.listing([str(n) for n in steps])
        return f"every variant at {shown} epochs, to match training loss"
    added = []
    for grid in list(after.grids()):
        named = grid["variant"] if isinstance(grid["variant"], list) else [grid["variant"]]
        swept = [v for v in named if math.isfinite(after.rho(v)) and "rho" not in grid]
        grid["variant"] = [v for v in named if v not in swept]
        for variant in swept:
            rho = after.rho(variant)
            rest = {key: value for key, value in grid.items() if key != "variant"}
            added.append({"variant": [variant], "rho": [0.5 * rho, rho, 2 * rho], **rest})
    if added:
        after.given["grid"] = [g for g in after.given["grid"] if g["variant"]] + added
    shown = after.family.study.title(after.setting)
    return f"every variant at half, once and twice its rho ({shown}), to match the effective radius"


_CHANGES = {
    "variants": _variants, "seeds": _more_seeds, "controls": _controls, "measure": _measure,
    "match": _match,
}  # fmt: skip
