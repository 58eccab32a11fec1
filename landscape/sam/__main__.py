"""python -m landscape.sam: the table of variants, as Markdown; --write renews all derived files."""

import sys

from landscape.sam import recipes
from landscape.sam.table import derived, table

if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        for path, text in derived(recipes()).items():
            path.write_text(text, encoding="utf-8")
    else:
        print(table(recipes()), end="")
