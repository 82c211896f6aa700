"""`python -m driftlens`."""

from .cli import main

if __name__ == "__main__":
    main()
