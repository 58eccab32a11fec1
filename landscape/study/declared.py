"""What a study declares before its first training, under one hash.

What is decided after the numbers are seen is no test. So metric, margin, comparisons, seeds and the
directions that the hypotheses predict are written down before anything is trained; a later change
is kept beside the first hash, and the report says so. Rows are not under the hash: a study may
grow. Which of them came, went or were trained otherwise later is kept as well, and said.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from landscape.metrics import metric
from landscape.report.rules import HYPOTHESES
from landscape.storage import StudyFolder
from landscape.study.comparisons_table import default_metric
from landscape.study.spec import Study, fingerprint


def declaration(
    study: Study, place: StudyFolder, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`declared`, and what stood when the first training began: `declared_first`, `rows_first`.

    before: what resolved.json holds already. The first hash is "" for a folder that was trained
    before declarations were kept, and the first rows (by setting) are None before these were.
    """
    declared, rows = _declared(study), _rows(study)
    begun = place.runs.is_dir() and any(place.runs.iterdir())
    known = before or {}
    return {
        "declared": declared | {"rows": rows},
        "declared_first": known.get("declared_first", "") if begun else declared["sha256"],
        "rows_first": known.get("rows_first") if begun else rows,
    }


def _rows(study: Study) -> dict[str, dict[str, str]]:
    """What is compared, by setting: a fingerprint of how each row is trained, by its name.

    A row that joins, leaves or is changed later was chosen knowing numbers.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for run in study.runs:
        # Of what every seed has in common: neither what it has drawn nor whose code or weights.
        problem = {
            k: v for k, v in asdict(run.problem).items() if k not in ("data_dir", "verify")
        } | ({"data_seed": None, "noise_seed": None} if run.problem.redraw else {})
        how = [problem, run.recipe, run.options, {} if run.weights else run.training, run.dtype]
        found.setdefault(run.setting, {}).setdefault(run.variant, set()).add(fingerprint(how))
    return {
        setting: {row: "-".join(sorted(hows)) for row, hows in sorted(rows.items())}
        for setting, rows in found.items()
    }


def _declared(study: Study) -> dict[str, Any]:
    compared = study.comparisons
    row = metric(compared.metric if compared else default_metric(study.settings))
    seeds: dict[str, list[int]] = {}
    for run in study.runs:
        seeds.setdefault(run.setting, []).append(run.seed)
    stated = {
        "metric": row.key,
        "better": row.better,
        "scale": row.scale,
        "margin": row.margin if compared is None or compared.margin is None else compared.margin,
        "comparisons": None if compared is None else asdict(compared),
        "seeds": {name: sorted(set(numbers)) for name, numbers in seeds.items()},
        "predicted": {h.key: [h.quantity, h.sign] for h in HYPOTHESES},
    }
    return stated | {"sha256": fingerprint(stated, length=64)}
