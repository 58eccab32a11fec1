"""`python -m landscape.cli`."""

from landscape.cli import main

main()
