"""`sbi-ignite doctor`: whether everything here works, and how fast it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sbi_ignite.cli import checks
from sbi_ignite.cli.checks import Finding
from sbi_ignite.cli.output import console, fail, in_terminal, note, print_json, print_table

if TYPE_CHECKING:
    from sbi_ignite.cli.measure import Problem, Speed


_EXECUTORS = {
    "torchscript": "recorded once, then repeated without Python (torchscript)",
    "generated_python": "recorded once, then repeated as a single Python function",
    "cuda_graph": "recorded once, then launched on the GPU by a single call (cuda_graph)",
    "inductor": "recorded once, then compiled (inductor)",
    "eager": "by torch, operation by operation (eager)",
}
"""How steps are computed, in words."""


def doctor(
    network: Annotated[str, typer.Option(help="The network to time, as in posterior_nn.")] = "maf",
    rows: Annotated[int, typer.Option(min=20, help="Number of simulations.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 200,
    dim_theta: Annotated[int, typer.Option(min=1, help="Number of parameters.")] = 5,
    dim_x: Annotated[int, typer.Option(min=1, help="Values in an observation.")] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="How long to time each device, about.")
    ] = 4.0,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Whether to time anything.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check versions, devices, settings and loggers, and time a training on CPU and GPU.

    It says whether the installed versions are supported, which loggers can be used and are logged
    in, how steps are computed and why, and which device is faster for a network and a size of
    data. Exit code 1: something that trainings need is broken.
    """
    findings = list(checks.versions())
    found, resolved = checks.resolved_settings()
    importable = not any(each.status == "broken" for each in findings)
    if importable:
        findings += checks.devices(resolved.train.device if resolved else None)
    findings.append(found)
    with _busy("asking the loggers"):
        findings += checks.loggers(resolved)
    speeds: list[Speed] = []
    if importable:
        findings.append(checks.recording())
        if measure:
            from sbi_ignite.cli.measure import Problem

            problem = Problem(network, rows, batch_size, dim_theta, dim_x)
            speeds = _measured(problem, seconds, findings.append)
            findings += _verdict(problem, speeds)
    healthy = not any(each.status == "broken" for each in findings)
    if as_json:
        timed = {speed.device: asdict(speed) for speed in speeds}
        listed = [each.to_dict() for each in findings]
        print_json({"ok": healthy, "findings": listed, "speed": _fastest(speeds) | timed})
    else:
        columns = ("section", "name", "status", "found")
        cells = [[each.section, each.name, each.status, each.text] for each in findings]
        print_table(columns, cells)
        _conclude(findings)
    if not healthy:
        raise typer.Exit(1)


def _conclude(findings: list[Finding]) -> None:
    """Say in a sentence what all findings amount to; in a pipe on standard error."""
    broken = [f"{each.section} {each.name}" for each in findings if each.status == "broken"]
    noted = [f"{each.section} {each.name}" for each in findings if each.status == "note"]
    text = f"Broken: {', '.join(broken)}." if broken else "Trainings work here."
    if noted:
        text += f" Worth knowing, but no obstacle: {', '.join(noted)}."
    if in_terminal():
        console().print(text, markup=False)
    else:
        note(text)


def _measured(problem: Problem, seconds: float, tell: Callable[[Finding], None]) -> list[Speed]:
    """Time the CPU and the GPU, if there is one; what goes wrong is a finding."""
    from sbi_ignite.cli.measure import measure
    from sbi_ignite.exceptions import ArgumentError, DataError

    speeds = []
    for device in filter(None, ("cpu", checks.best_gpu())):
        try:
            with _busy(f"timing {problem} on {device}"), _settings_set_aside():
                speeds.append(measure(problem, device, seconds))
        except (ArgumentError, DataError) as error:
            fail(error, 2)
        except Exception as error:  # any failure of a training on this machine is the finding
            text = f"training {problem.network} fails: {type(error).__name__}: {error}"
            tell(Finding("steps", device, "broken", " ".join(text.split())))
        else:
            tell(_how(speeds[-1]))
    return speeds


def _how(speed: Speed) -> Finding:
    """Say how steps are computed on a device."""
    because = f"; not faster, because {speed.executor_reason}" if speed.executor_reason else ""
    how = _EXECUTORS.get(speed.executor, speed.executor)
    details = {"executor": speed.executor, "reason": speed.executor_reason}
    return Finding("steps", speed.device, "ok", f"{how}{because}", details)


def _verdict(problem: Problem, speeds: list[Speed]) -> Iterator[Finding]:
    """Say how long an epoch takes on each device, and which one is faster."""
    for speed in speeds:
        estimated = (
            f" (estimated from {speed.measured_rows:,} simulations)"
            if speed.measured_rows < problem.rows
            else ""
        )
        text = f"{_duration(speed.seconds_per_epoch)} per epoch{estimated}: {problem}"
        yield Finding("speed", speed.device, "ok", text)
    if len(speeds) == 1 and speeds[0].device == "cpu":
        yield Finding(
            "speed", "faster device", "ok", "cpu, since there is no GPU to compare it with"
        )
    elif len(speeds) > 1:
        fast, slow = sorted(speeds, key=lambda speed: speed.seconds_per_epoch)
        factor = slow.seconds_per_epoch / fast.seconds_per_epoch
        text = (
            f"{fast.device}, {factor:.1f} times as fast as {slow.device} for this network and data"
        )
        yield Finding("speed", "faster device", "ok", text, {"factor": round(factor, 2)})


def _fastest(speeds: list[Speed]) -> dict[str, Any]:
    fastest = min(speeds, key=lambda speed: speed.seconds_per_epoch, default=None)
    return {"faster": fastest and fastest.device}


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@contextlib.contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show in a terminal what takes a while."""
    if not in_terminal():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextlib.contextmanager
def _settings_set_aside() -> Iterator[None]:
    """Time the same training whatever the environment says about trainings."""
    import os

    ours = [name for name in os.environ if name.upper().startswith("SBI_IGNITE_")]
    before = {name: os.environ.pop(name) for name in ours}
    try:
        yield
    finally:
        os.environ.update(before)
