"""A pytest plugin for sbi's own tests: turns the patch on, and notes what came of every test.

It is loaded with `-p plugin` from a process whose tests are sbi's, so that it can import nothing
from this package of tests. With the patch on, a session in which ignite's engine never ran fails.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "engine runs"
WITHOUT_ENGINE = 9
"""Exit status of a session that passed without having trained anything through the engine."""

_engine_runs = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("sbi_ignite")
    group.addoption("--sbi-ignite", choices=("on", "off"), default="on", help="patch sbi or not")
    group.addoption("--outcomes", type=Path, help="write what came of every test to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Turn the patch on before sbi's tests are imported; each worker of xdist does so too."""
    config.pluginmanager.register(_Outcomes(config), "sbi_ignite_outcomes")
    if config.getoption("--sbi-ignite") == "on":
        _count_engine_runs()
        importlib.import_module("sbi_ignite").patch_sbi()


def _count_engine_runs() -> None:
    """Count those runs of ignite's engine that sbi_ignite starts."""
    engine = importlib.import_module("ignite.engine").Engine
    original = engine.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _engine_runs
        caller = sys._getframe(1).f_globals.get("__name__", "")
        _engine_runs += caller.split(".")[0] == "sbi_ignite"
        return original(self, *args, **kwargs)

    engine.run = run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Let a test's report say how often the engine ran in it."""
    before = _engine_runs
    yield
    item.user_properties.append((PROPERTY, _engine_runs - before))


class _Outcomes:
    """Collects reports; with xdist, those of all workers arrive in the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self.patched = config.getoption("--sbi-ignite") == "on"
        self.out = config.getoption("--outcomes")
        self.is_worker = hasattr(config, "workerinput")
        self.outcomes: dict[str, str] = {}
        self.engine_runs: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test, the worst of its three phases."""
        outcome = _outcome(report)
        if report.when == "call" or outcome != "passed":
            self.outcomes[report.nodeid] = outcome
        for name, value in report.user_properties:
            if name == PROPERTY:
                self.engine_runs[report.nodeid] = value

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that could not be imported."""
        if report.failed:
            self.outcomes[report.nodeid] = "error"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the outcomes, and fail a session that has not tested anything of ours."""
        if self.is_worker:
            return
        if self.out is not None:
            record = {"outcomes": self.outcomes, "engine runs": self.engine_runs}
            self.out.write_text(json.dumps(record, indent=1, sort_keys=True))
        if self.patched and exitstatus == 0 and not sum(self.engine_runs.values()):
            session.exitstatus = WITHOUT_ENGINE

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say how many tests trained through the engine."""
        if self.patched:
            trained = [runs for runs in self.engine_runs.values() if runs]
            terminalreporter.write_line(
                f"sbi_ignite: ignite's engine ran {sum(trained)} times in {len(trained)} tests"
            )


def _outcome(report: pytest.TestReport) -> str:
    """Return one word for a report."""
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed and report.when != "call":
        return "error"
    return report.outcome
