"""Run a script or module with sbi trained by sbi_ignite (door c), or one of the commands.

python -m sbi_ignite script.py ARG...
python -m sbi_ignite -m pytest tests/
python -m sbi_ignite (run | settings | show | doctor) ...

After installation, the commands are also those of `sbi-ignite`. A command wins over a script of the
same name: write ./show for the latter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sbi_ignite.cli.run import Script, run_script

COMMANDS = ("run", "settings", "show", "doctor")
USAGE = f"""\
usage: python -m sbi_ignite (SCRIPT | -m MODULE) [ARG ...]
       python -m sbi_ignite ({" | ".join(COMMANDS)}) [--help]"""


def main(arguments: Sequence[str]) -> int:
    """Run a script or module as `python` would, with the patch on, or a command.

    Args:
        arguments: The command line after `python -m sbi_ignite`.

    Returns:
        2 after a mistake in the arguments, a command's exit code; else the script's own end
        decides.
    """
    arguments = list(arguments)
    if arguments and arguments[0] in COMMANDS:
        if Path(arguments[0]).is_file():
            name = arguments[0]
            print(
                f"sbi_ignite: {name} is the command; for the script, say ./{name}", file=sys.stderr
            )
        return _command(arguments, "python -m sbi_ignite")
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
    return _run(Script(target[0], tuple(target[1:]), as_module))


def installed_command() -> int:
    """Do what `sbi-ignite ...` asks for, and return the exit code."""
    here = str(Path(sys.argv[0]).resolve().parent)
    if sys.path and str(Path(sys.path[0]).resolve()) == here:
        sys.path[0] = str(Path.cwd())  # the current folder comes first, as under `python -m`
    return _command(sys.argv[1:], "sbi-ignite")


def _command(arguments: Sequence[str], program: str) -> int:
    try:
        from sbi_ignite.cli.app import call
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "tomlkit"):
            raise
        print(
            f"sbi_ignite: the commands need {error.name}: pip install typer rich tomlkit\n"
            "Without it, scripts run by: python -m sbi_ignite SCRIPT [ARG ...]",
            file=sys.stderr,
        )
        return 1
    asked = call(arguments, program)
    return _run(asked) if isinstance(asked, Script) else asked


def _run(script: Script) -> int:
    if script.is_missing:
        print(f"sbi_ignite: no such script: {script.target}\n{USAGE}", file=sys.stderr)
        return 2
    from sbi_ignite.exceptions import SettingsError
    from sbi_ignite.settings.sources import read_layers

    try:
        read_layers()  # now, not at the first train() after hours of simulating
    except SettingsError as error:
        print(f"SettingsError: {error}", file=sys.stderr)
        return 2
    run_script(script)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
