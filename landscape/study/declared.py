"""What a study declares before its first training, under one hash.

What is decided after the numbers are seen is no test. So metric, margin, comparisons, seeds and the
directions that the hypotheses predict are written down before anything is trained; a later change
is kept beside the first hash, and the report says so.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from landscape.metrics import metric
from landscape.report.rules import HYPOTHESES
from landscape.storage import StudyFolder
from landscape.study.spec import Study, fingerprint


def declaration(
    study: Study, place: StudyFolder, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`declared`, and `declared_first`: the hash that stood when the first training began.

    before: what resolved.json holds already. The first hash is "" for a folder that was trained
    before declarations were kept.
    """
    declared = _declared(study)
    begun = place.runs.is_dir() and any(place.runs.iterdir())
    first = (before or {}).get("declared_first", "") if begun else declared["sha256"]
    return {"declared": declared, "declared_first": first}


def _declared(study: Study) -> dict[str, Any]:
    compared = study.comparisons
    row = metric(compared.metric if compared else "test_accuracy")
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
