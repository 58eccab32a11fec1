"""Whether a study file may go on in a folder, and what is said before it does.

A folder belongs to the file that made it. The rule, for whatever the folder holds already:

grown      every run, measurement and comparison that the folder has is still asked for (variants or
           seeds were added, a title was changed): it goes on. Another file of the name is named.
edited     the same file asks for less or for others: what changed is said, the earlier runs are
           left where they are, out of the results.
another    another file that asks for less or for others: refused, as it would take the place of
           the first one's results and page.

The file is the same where its path is, alone or as seen from the folder (both were moved), or where
the one that made the folder is gone (it was renamed). The folder's own study.toml is always it.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import landscape
from landscape import storage, toml
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study.spec import Study

_SHOWN = 4  # changes


def said_before(study: Study, place: StudyFolder, new: Mapping[str, Any]) -> str:
    """What to say before a study goes on in a folder; "" where nothing of it is lost.

    new: `resolved` of the study. Raises LandscapeError for a folder that is not its own.
    """
    if place.root.exists() and not place.root.is_dir():
        raise LandscapeError(f"--out {place.root} is a file; give a folder.")
    if not place.root.exists() or not any(place.root.iterdir()):
        return ""
    if not place.resolved.exists() and _only_our_beginnings(place):
        return ""
    if not place.resolved.exists():
        raise LandscapeError(
            f"{place.root} holds other files and no resolved.json, so it is not a study folder. "
            f"Give a new folder with --out."
        )
    old = place.check()
    if (found := old.get("name")) != study.name:
        raise LandscapeError(
            f"{place.root} holds the study {found!r}, and the study file is {study.name!r}. "
            f"Give another folder with --out, or the study the same name to continue it."
        )
    if old.get("study_sha256") == new["study_sha256"] and _runs(old) <= _runs(new):
        return ""
    grown = _runs(old) <= _runs(new) and _asks_for_all(old, new)
    if (first := _other_file(study, place, old)) is None:
        return "" if grown else _edited(study, place, old, new)
    if grown:
        return f"{place.root} was made by {first}; {study.file}, of the same name, goes on in it."
    raise LandscapeError(
        f"{place.root} holds the study {study.name!r} of {first}, and {study.file} has the same "
        f"name and is another one{_among(_changes(study, place))}. Give one of them another name, "
        f"or a folder of its own with --out. Where this file is to replace the other, remove or "
        f"rename {first} first."
    )


def file_of(study: Study, place: StudyFolder, old: Mapping[str, Any] | None) -> str:
    """What resolved.json keeps as the file that a folder belongs to: its path from the folder."""
    if not study.file or Path(study.file) == place.study_toml:
        return str((old or {}).get("file", ""))
    return _from(place, study.file)


def base_of(place: StudyFolder, old: Mapping[str, Any]) -> Path:
    """Where relative paths and modules of the folder's file are looked up: where that file lay.

    Or lies now, where the folder was moved together with it.
    """
    base, now = Path(str(old["base"])), place.root / str(old.get("file", ""))
    return now.parent.resolve() if not base.is_dir() and now.is_file() else base


def _from(place: StudyFolder, file: str) -> str:
    try:
        return os.path.relpath(file, place.root)
    except ValueError:  # on another drive
        return file


def _other_file(study: Study, place: StudyFolder, old: Mapping[str, Any]) -> Path | None:
    """The file that made the folder, where it is there and not the file of the study."""
    kept = str(old.get("file", ""))
    if not study.file or not kept or Path(study.file) == place.study_toml:
        return None
    # Where it lies as seen from the folder, and where it lay before the folder was moved.
    known = [place.root / kept, Path(str(old["base"])) / Path(kept).name]
    there = [Path(os.path.normpath(path)) for path in known if path.exists()]
    if any(path.samefile(study.file) for path in there):
        return None
    return None if _from(place, study.file) == kept else next(iter(there), None)


def _runs(known: Mapping[str, Any]) -> set[str]:
    return {str(run["run"]) for run in known.get("runs", [])}


def _asks_for_all(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether comparisons and measurements that are there are still asked for as they were."""
    before, now = (dict(known.get("measure") or {}) for known in (old, new))
    made, asked = before.pop("measurements", {}), now.pop("measurements", {})
    before.pop("usual", None), now.pop("usual", None)
    kept = all(asked.get(name) == options for name, options in made.items())
    return kept and old.get("comparisons") == new["comparisons"] and before == now


def _edited(
    study: Study, place: StudyFolder, old: Mapping[str, Any], new: Mapping[str, Any]
) -> str:
    first = (old.get("versions") or {}).get("landscape", landscape.__version__)
    changes = _changes(study, place)
    if first != landscape.__version__:
        changes.insert(0, f"landscape {first}, now {landscape.__version__}")
    gone = len(_runs(old) - _runs(new))
    runs = "1 run" if gone == 1 else f"{gone} runs"
    left = (
        f" {runs} of {len(_runs(old))} {'is' if gone == 1 else 'are'} no longer asked for: left in "
        f"{place.runs}, and out of the results."
    )
    return (
        f"Since {place.root} was made, the study was changed{_among(changes)}."
        f"{left if gone else ''}"
    )


def _among(changes: list[str]) -> str:
    more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f" ({'; '.join(changes[:_SHOWN])}{more})" if changes else ""


def _changes(study: Study, place: StudyFolder) -> list[str]:
    """Lines of the file that are not those of the folder's, in words."""
    try:
        before = tomllib.loads(place.study_toml.read_text(encoding="utf-8"))
        now = tomllib.loads(study.text)
    except (OSError, ValueError):
        return []
    old, new = dict(_lines(before)), dict(_lines(now))
    return [
        f"{key} = {old.get(key, 'not set')}, now {new.get(key, 'not set')}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]


def _lines(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every line of a file by its path, written as in TOML; a single [[grid]] is a [grid]."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _lines(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for number, inner in enumerate(value, 1):
            yield from _lines(inner, path if len(value) == 1 else f"{path} number {number}")
    else:
        shown = toml.value_text(value)
        yield path, shown if len(shown) <= 60 else f"{shown[:57]}..."


def _only_our_beginnings(place: StudyFolder) -> bool:
    # Killed between study.toml and resolved.json.
    ours = {place.study_toml.name, place.lock.name, place.claim.name, place.jobs.name}
    return all(p.name in ours or storage.is_temporary(p) for p in place.root.iterdir())
