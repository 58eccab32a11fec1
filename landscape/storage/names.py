"""Names from people, and the folders that they become: through `folder_name`, and no other way."""

import hashlib
import re
import unicodedata
from typing import Any

from landscape.errors import LandscapeError

_SAFE = re.compile(r"[a-z0-9](?:[a-z0-9_.+-]{0,62}[a-z0-9_+-])?")
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))]
)
_LONGEST = 200


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes: a name that is safe in any file system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def folder_name(text: str) -> str:
    """One name of a folder for each text: the text where it is safe, else its slug and a hash.

    Safe in every file system, those that ignore case among them: texts that differ have names that
    differ by more than case.
    """
    if _SAFE.fullmatch(text) and text.partition(".")[0] not in _RESERVED:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "-".join(filter(None, (slug(text)[:40].strip("-"), digest)))


def check_name(what: str, text: Any) -> str:
    """A text of 1 to 200 characters that can all be seen; others are refused by name."""
    if not isinstance(text, str):
        raise LandscapeError(f"{what} = {text!r} must be a text in quotes.")
    if not text.strip():
        raise LandscapeError(f"{what} = {text!r} is empty; give a name.")
    if len(text) > _LONGEST:
        raise LandscapeError(
            f"{what} has {len(text)} characters ({text[:20]!r}...); {_LONGEST} are possible."
        )
    hidden = [c for c in text if unicodedata.category(c)[0] == "C"]
    if hidden:
        raise LandscapeError(
            f"{what} = {text!a} holds the character {hidden[0]!a}, which cannot be seen; remove it."
        )
    return text


def visible(text: str) -> str:
    """The text with a mark for each character that cannot be seen, or that turns the others round.

    For names from files of others: XML and LaTeX refuse control characters, and a reader is misled
    by the others. `check_name` refuses them in names of our own.
    """
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in text)


def is_plain_name(name: str) -> bool:
    """Whether `name` is one file of a folder: no path, no way out of it."""
    return bool(name) and not set(name) & set("/\\\0") and name not in (".", "..")
