"""python -m landscape.sam: the table of variants, as Markdown."""

from landscape.sam import recipes
from landscape.sam.rows import table

if __name__ == "__main__":
    print(table(recipes()), end="")
