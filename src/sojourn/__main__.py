"""`python -m sojourn`."""

from sojourn.cli.main import main

main()
