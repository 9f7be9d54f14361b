"""`python -m saefeat`."""

from saefeat.cli import main

main()
