"""`python -m intervaljob`."""

from intervaljob.cli import main

main()
