"""python -m landscape.study.measurements: what a study can measure, as Markdown."""

from landscape.study.measurements import listing

if __name__ == "__main__":
    print(listing(), end="")
