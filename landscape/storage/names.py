"""Names that are safe in any file system."""

import re


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes: a name that is safe in any file system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def is_plain_name(name: str) -> bool:
    """Whether `name` is one file of a folder: no path, no way out of it."""
    return bool(name) and not set(name) & set("/\\\0") and name not in (".", "..")
