"""`python -m landscape`: the command, where an environment's scripts are not on PATH."""

from landscape.cli import main

main()
