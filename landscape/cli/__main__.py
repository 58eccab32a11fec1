"""`python -m landscape.cli`: the same as `python -m landscape`."""

from landscape.cli import main

main()
