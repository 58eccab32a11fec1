"""Text of people in Markdown: what would be a table's edge, a tag or a link is printed as it is."""

import re
from typing import Any

_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def markdown(value: Any) -> Any:
    """A text that Markdown prints as it is, on one line; other values as they are."""
    if not isinstance(value, str):
        return value
    text = " ".join(value.split("\n")).replace("|", r"\|").replace("](", r"]\(")
    return _TAG.sub("&lt;", text)
