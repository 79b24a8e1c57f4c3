"""Run a script or module with sbi trained by sbi_ignite (door c).

python -m sbi_ignite script.py ARG...
python -m sbi_ignite -m pytest tests/
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = "usage: python -m sbi_ignite (SCRIPT | -m MODULE) [ARG ...]"


def main(arguments: Sequence[str]) -> int:
    """Run a script or module as `python` would, with the patch on.

    Args:
        arguments: The command line after `python -m sbi_ignite`.

    Returns:
        2 after a mistake in the arguments; else the script's own end decides.
    """
    arguments = list(arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            f"{USAGE}\n\nRuns it with sbi's .train() on sbi_ignite; SBI_IGNITE_* variables apply."
        )
        return 0
    as_module = arguments[:1] == ["-m"]
    target = arguments[1:] if as_module else arguments
    if not target or (target[0].startswith("-") and not as_module):
        print(USAGE, file=sys.stderr)
        return 2
    if not as_module and not Path(target[0]).exists():
        print(f"sbi_ignite: no such script: {target[0]}\n{USAGE}", file=sys.stderr)
        return 2

    from sbi_ignite.bridge.patch import patch_sbi

    patch_sbi()
    sys.argv = target
    if as_module:
        sys.path.insert(0, str(Path.cwd())) if str(Path.cwd()) not in sys.path else None
        runpy.run_module(target[0], run_name="__main__", alter_sys=True)
    else:
        # As python itself does: the script's folder comes first on the path.
        sys.path[0] = str(Path(target[0]).resolve().parent)
        runpy.run_path(target[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
