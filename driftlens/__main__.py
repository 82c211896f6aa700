"""`python -m driftlens`."""

from .cli import main

main()
