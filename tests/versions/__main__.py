"""Run chosen tests with other versions: `python -m tests.versions --help`."""

from .run import main

if __name__ == "__main__":
    raise SystemExit(main())
