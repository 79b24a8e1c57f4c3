"""All commands as one typer application."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from sbi_ignite._version import __version__
from sbi_ignite.cli.doctor import doctor
from sbi_ignite.cli.run import Script
from sbi_ignite.cli.settings import settings
from sbi_ignite.cli.show import show

_HELP = "Train sbi's estimators with sbi_ignite, look at runs, settings and this machine."


def call(arguments: Sequence[str], program: str = "sbi-ignite") -> int | Script:
    """Carry out a command.

    Args:
        arguments: The command line after the program's name.
        program: That name, for usage and completion.

    Returns:
        The exit code; for `run`, what is to be run, so that it runs outside of typer: its errors,
        exit code and Ctrl-C are then those of python.
    """
    asked: list[Script] = []
    hook = sys.excepthook
    try:
        _app()(list(arguments), prog_name=program, obj=asked)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return asked[0] if asked and not code else code
    finally:
        sys.excepthook = hook  # typer has put its own there
    return 0


def _app() -> typer.Typer:
    app = typer.Typer(
        name="sbi-ignite",
        help=_HELP,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_program)
    # Everything behind the script's name is the script's.
    app.command("run", context_settings={"allow_interspersed_args": False}, help=_RUN)(_run)
    app.command("settings", help=_help(settings))(settings)
    app.command("show", help=_help(show))(show)
    app.command("doctor", help=_help(doctor))(doctor)
    return app


def _help(command: Callable[..., None]) -> str:
    """Return the docstring with a line for each paragraph, to be broken by the terminal's width."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


_RUN = (
    "Run a script or module as python would, with sbi's .train() on sbi_ignite. SBI_IGNITE_* "
    "variables apply. All arguments behind its name are its own."
)


def _run(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="SCRIPT", help="The script; after -m, the module.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARG", help="What the script is given.")
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module instead of a script.")] = False,
) -> None:
    context.obj.append(Script(target, tuple(arguments or ()), module))
