"""Run sbi's own tests under the patch: `python -m tests.downstream --help`."""

from .run import main

if __name__ == "__main__":
    raise SystemExit(main())
