"""Make the loggers that the user asked for, or raise before training starts."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sbi_ignite.exceptions import ArgumentError, MissingPackageError
from sbi_ignite.loggers.base import Backend
from sbi_ignite.loggers.group import Loggers
from sbi_ignite.loggers.helper_thread import OnHelperThread
from sbi_ignite.loggers.ignite_logger import IgniteLogger, is_ignite_logger
from sbi_ignite.loggers.tracker import SbiTracker, is_tracker


def make_loggers(
    asked: Sequence[object], run_directory: str | os.PathLike[str] | None = None
) -> Loggers:
    """Return an object that logs to everything that was asked for.

    Args:
        asked: `LoggingConfig` values, names of backends, sbi `Tracker` objects, loggers of
            `ignite.handlers`, or our own `Backend` objects.
        run_directory: Where the run's files are; None without checkpoints.

    Raises:
        MissingPackageError: If a backend's package is not installed.
        ArgumentError: If an object is none of these, or two of them write to the same place.

    Example:
        >>> make_loggers(["memory"]).backends[0].name
        'memory'
    """
    backends = [make_backend(item) for item in asked]
    _refuse_equal(asked, run_directory)
    return Loggers(backends)


def make_backend(asked: object) -> Backend:
    """Return the backend for one thing that was asked for; see `make_loggers`."""
    from sbi_ignite.settings import LoggingConfig

    if isinstance(asked, str):
        asked = LoggingConfig(backend=asked)  # type: ignore[arg-type] # checked by LoggingConfig
    if isinstance(asked, LoggingConfig):
        fields = {name: getattr(asked, name) for name in asked.fields if name != "backend"}
        return backend_by_name(asked.backend, fields)
    if isinstance(asked, Backend):
        return asked
    if is_ignite_logger(asked):
        return OnHelperThread(IgniteLogger(asked))
    if is_tracker(asked):
        return OnHelperThread(SbiTracker(asked))
    raise ArgumentError(
        f"logging: expected a LoggingConfig, one of the names {', '.join(LoggingConfig.takes)}, "
        f"an sbi Tracker, a logger of ignite.handlers or a list of these, got {asked!r}."
    )


def _refuse_equal(asked: Sequence[object], run_directory: str | os.PathLike[str] | None) -> None:
    """Refuse two loggers that would write everything twice."""
    seen: dict[Hashable, object] = {}
    for item in asked:
        place, where, remedy = _place(item, run_directory)
        if place in seen:
            raise ArgumentError(
                f"logging: expected every place once, got {seen[place]!r} and {item!r}, which both "
                f"write to {where}. Leave one of them out{remedy}."
            )
        seen[place] = item


def _place(item: object, run_directory: str | os.PathLike[str] | None) -> tuple[Hashable, str, str]:
    """Return where a logger writes: to compare, in words, and how to say another place."""
    from sbi_ignite.settings import LoggingConfig

    if isinstance(item, str):
        item = LoggingConfig(backend=item)  # type: ignore[arg-type] # checked by LoggingConfig
    if not isinstance(item, LoggingConfig):
        # The trainer's own tracker comes wrapped, the user's does not.
        target = getattr(item, "tracker", item) if isinstance(item, Backend) else item
        return id(target), f"the same {type(target).__name__}", ""
    fields = {name: getattr(item, name) for name in item.fields if name != "backend"}
    place, where, other = backend_class(item.backend).place(fields, run_directory)
    return (item.backend, *place), where, f", or give one {other}" if other else ""


def backend_by_name(name: str, fields: Mapping[str, Any]) -> Backend:
    """Return one of our own backends, in a process of its own if it needs one.

    Args:
        name: One of the names that `LoggingConfig.backend` takes.
        fields: Arguments of its class.
    """
    check_package(name)
    if backend_class(name).in_own_process:
        from sbi_ignite.loggers.subprocess_backend import SubprocessBackend

        return SubprocessBackend(name, fields)
    return backend_class(name)(**fields)


def backend_class(name: str) -> type[Backend]:
    """Return a backend's class, which has that name and is on the page of that name."""
    page = importlib.import_module(f"sbi_ignite.loggers.{name}")
    classes = (item for item in vars(page).values() if isinstance(item, type))
    return next(cls for cls in classes if issubclass(cls, Backend) and cls.name == name)


def check_package(name: str) -> None:
    """Raise if a backend's package is missing."""
    package = backend_class(name).package
    if package is None:
        return
    if not _is_installed(package):
        raise MissingPackageError(
            f"Logging to {name} needs the package {package!r}, which is not installed. Install it "
            f'with: pip install "sbi-ignite[{package}]"'
        )


def _is_installed(package: str) -> bool:
    """Say whether a package can be imported; a mere folder of that name does not count."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
