"""Run a script or module as python would, with the patch on."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Script:
    """What to run.

    Attributes:
        target: Path of a script, or name of a module.
        arguments: What it finds in `sys.argv[1:]`.
        as_module: Whether the target is a module.
    """

    target: str
    arguments: tuple[str, ...] = ()
    as_module: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether there is no such script; modules are looked for when they are run."""
        return not self.as_module and not Path(self.target).exists()


def run_script(script: Script) -> None:
    """Run a script or module with sbi's trainers patched; it ends as it would under python.

    Args:
        script: What to run.

    Raises:
        UnsupportedSbiError: If the installed sbi lacks what is needed.
        SystemExit: If there is nothing of that name to run, with a line that says so.
    """
    from sbi_ignite.bridge.patch import patch_sbi

    patch_sbi()
    sys.argv = [script.target, *script.arguments]
    try:
        _run(script)
    except ImportError as error:
        if not _is_of_runpy(error):
            raise
        sys.exit(f"sbi_ignite: {error}")  # and exit code 1, as under python


def _run(script: Script) -> None:
    if script.as_module:
        sys.path.insert(0, str(Path.cwd())) if str(Path.cwd()) not in sys.path else None
        runpy.run_module(script.target, run_name="__main__", alter_sys=True)
    else:
        # As python itself does: the script's folder comes first on the path.
        sys.path[0] = str(Path(script.target).resolve().parent)
        runpy.run_path(script.target, run_name="__main__")


def _is_of_runpy(error: ImportError) -> bool:
    """Say whether there was nothing to run, rather than something missing in what ran."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__") == "runpy"
