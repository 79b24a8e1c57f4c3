"""What `doctor` looks at besides speed: versions, devices, settings and loggers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sbi_ignite.exceptions import SbiIgniteError
from sbi_ignite.settings import LoggingConfig, Resolved, resolve
from sbi_ignite.settings.redaction import redact

Status = Literal["ok", "note", "broken"]

_IMPORT_NAMES = {"pytorch-ignite": "ignite"}
_NEEDED = ("torch", "sbi", "pytorch-ignite", "pydantic", "pydantic-settings", "numpy", "matplotlib")
_SECONDS = 90
"""How long a backend's library may take to be imported and to answer."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: What it is about: "versions", "devices", "settings", "loggers" or "steps".
        name: What was looked at.
        status: "ok"; "note" for what may matter; "broken" for what keeps trainings from working.
        text: What was found.
        details: The same for programs.
    """

    section: str
    name: str
    status: Status
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        own = {"section": self.section, "name": self.name, "status": self.status, "text": self.text}
        return {**own, **self.details}


# --- versions


def versions() -> Iterator[Finding]:
    """Say which versions were found, and whether they are supported."""
    allowed = _allowed()
    yield _version("python", platform.python_version(), allowed.get("python"))
    for name in _NEEDED:
        try:
            importlib.import_module(_IMPORT_NAMES.get(name, name.replace("-", "_")))
        except Exception as error:  # whatever keeps it from being imported is the finding
            yield _broken("versions", name, f"cannot be imported: {_line(error)}")
        else:
            yield _sbi(allowed) if name == "sbi" else _version(name, None, allowed.get(name))


def _sbi(allowed: Mapping[str, str]) -> Finding:
    """Ask sbi for what is needed of it: its version number does not tell."""
    from sbi_ignite.bridge import probe

    found = _installed("sbi")
    lacking = probe.missing()
    if lacking:
        text = (
            f"{found}, which lacks {', '.join(lacking[:4])}: install sbi {allowed.get('sbi', '')}"
        )
        return _broken("versions", "sbi", text, version=found, supported=False, lacks=lacking)
    line = probe.line().__name__.rpartition(".")[2].removeprefix("sbi_").replace("_", ".")
    of = "its development version" if line == "main" else f"sbi {line}"
    return Finding(
        "versions",
        "sbi",
        "ok",
        f"{found}, supported: has all that is needed of {of}",
        {"version": found, "supported": True, "line": line},
    )


def _version(name: str, found: str | None, allowed: str | None) -> Finding:
    found = found or _installed(name)
    supported = None if allowed is None else SpecifierSet(allowed).contains(found, prereleases=True)
    details = {"version": found, "supported": supported, "range": allowed}
    if supported is False:
        return Finding(
            "versions",
            name,
            "note",
            f"{found}, outside the supported range ({allowed}): it may work",
            details,
        )
    wanted = f", supported ({allowed})" if allowed else ""
    return Finding("versions", name, "ok", f"{found}{wanted}", details)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(_IMPORT_NAMES.get(name, name))
        return str(getattr(module, "__version__", "unknown"))


def _allowed() -> dict[str, str]:
    """Return the versions that this package asks for; {} where it was not installed."""
    try:
        about = metadata.metadata("sbi-ignite")
    except metadata.PackageNotFoundError:
        return {}
    asked = [Requirement(line) for line in metadata.requires("sbi-ignite") or []]
    allowed = {each.name: str(each.specifier) for each in asked if str(each.specifier)}
    return {**allowed, "python": about["Requires-Python"]}


# --- devices


def devices(asked: str | None) -> Iterator[Finding]:
    """Say what there is to compute on.

    Args:
        asked: The device that the settings ask for; None without one.
    """
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count()
    yield Finding(
        "devices",
        "cpu",
        "ok",
        f"{platform.machine()}, {cores} cores, of which torch uses {threads}",
        {"cores": cores, "threads": threads},
    )
    yield from _gpus(torch)
    if asked is not None and not device_exists(asked):
        text = f"the settings ask for {asked}, which is not there"
        yield _broken("devices", asked, text)


def _gpus(torch: Any) -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        memory = about.total_memory / 2**30
        text = f"{about.name}, {memory:.0f} GiB"
        yield Finding("devices", f"cuda:{number}", "ok", text, {"memory_gib": round(memory, 1)})
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "Apple GPU")
    if not best_gpu():
        cuda, rocm = torch.version.cuda, torch.version.hip
        built = f"CUDA {cuda}" if cuda else rocm and f"ROCm {rocm}"
        why = (
            f"torch is built for {built}, but finds no GPU"
            if built
            else "the installed torch is a build for CPUs"
        )
        yield Finding("devices", "gpu", "ok", f"none: {why}", {"built_for": built})


def best_gpu() -> str | None:
    """Return the name of a GPU that torch can use, None without one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def device_exists(name: str) -> bool:
    """Say whether tensors can be made on a device.

    Example:
        >>> device_exists("cpu")
        True
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


# --- settings


def resolved_settings() -> tuple[Finding, Resolved | None]:
    """Say whether environment and settings file can be understood."""
    try:
        resolved = resolve()
    except SbiIgniteError as error:
        return _broken("settings", "variables and file", " ".join(str(error).split())), None
    names = sorted(n for n, origin in resolved.origins.items() if origin.source != "default")
    text = (
        f"{len(names)} set: {', '.join(names)}; see: sbi-ignite settings"
        if names
        else "none set: a call of train() decides alone"
    )
    return Finding("settings", "variables and file", "ok", text, {"set": names}), resolved


# --- loggers

_PROBES = {
    "tensorboard": """
import tensorboard, torch.utils.tensorboard
found = {"version": tensorboard.__version__}
""",
    "wandb": """
import wandb
found = {"version": wandb.__version__, "logged_in": bool(wandb.api.api_key)}
""",
    "mlflow": """
import mlflow, os
uri = asked or mlflow.get_tracking_uri()
found = {"version": mlflow.__version__, "uri": uri}
if uri.startswith(("http:", "https:")):
    import requests
    try:
        answer = requests.get(uri.rstrip("/") + "/health", timeout=5)
        found["reachable"] = answer.status_code < 500
        found["answer"] = f"HTTP {answer.status_code}"
    except requests.RequestException as error:
        found["reachable"], found["answer"] = False, type(error).__name__
""",
}
"""What is asked of each backend's library, in another process: it may hang, or break others."""

_PROBE = """
import contextlib, json, sys
asked = sys.argv[1] or None
with contextlib.redirect_stdout(sys.stderr):
    try:
{body}
    except Exception as error:
        found = {{"error": f"{{type(error).__name__}}: {{error}}"}}
print(json.dumps(found))
"""


def loggers(asked: Resolved | None) -> list[Finding]:
    """Say which backends can be used.

    Args:
        asked: The settings; what they ask for has to work.
    """
    wanted = [each for each in (asked.logging if asked else ()) if isinstance(each, LoggingConfig)]
    configs = {each.backend: each for each in wanted}
    names = [name for name in LoggingConfig.takes if name in _PROBES]
    built_in = [name for name in LoggingConfig.takes if name not in _PROBES and name != "none"]
    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(lambda n: _ask(n, configs.get(n)), names), strict=True))
    findings = [_backend(name, found[name], configs.get(name)) for name in names]
    own = Finding("loggers", ", ".join(built_in), "ok", "always there")
    return [own, *findings]


def _ask(name: str, config: LoggingConfig | None) -> dict[str, Any]:
    """Ask a backend's library in a process of its own."""
    if importlib.util.find_spec(name) is None:
        return {"missing": True}
    body = "\n".join(" " * 8 + line for line in _PROBES[name].strip().splitlines())
    uri = (config.tracking_uri if config else None) or ""
    limits = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_SILENT": "true"}
    code = None
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE.format(body=body), uri],
            env={**os.environ, **limits},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        code = done.returncode
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_SECONDS} seconds"}
    except (ValueError, IndexError):
        return {"error": f"its process ended with code {code}"}


def _backend(name: str, found: Mapping[str, Any], config: LoggingConfig | None) -> Finding:
    """Judge what a backend's library has said."""
    asked = " (the settings ask for it)" if config else ""
    bad: Status = "broken" if config else "note"
    if "missing" in found:
        text = f'not installed: pip install "sbi-ignite[{name}]"{asked}'
        return Finding("loggers", name, "broken" if config else "ok", text, {"installed": False})
    if "error" in found:
        text = f"cannot be used: {_line(found['error'])}{asked}"
        return Finding("loggers", name, bad, text, {"installed": True, "works": False})
    problem, text = _login(name, found, config)
    details = {"installed": True, "version": found["version"], "works": not problem}
    text = f"{found['version']}, {text}" if text else found["version"]
    return Finding("loggers", name, bad if problem else "ok", text + (problem and asked), details)


def _login(name: str, found: Mapping[str, Any], config: LoggingConfig | None) -> tuple[str, str]:
    """Return whether something keeps it from logging, and how it would log."""
    if name == "wandb":
        mode = (config.mode if config else None) or os.environ.get("WANDB_MODE", "online")
        if mode in ("offline", "dryrun", "disabled"):
            return "", f"{mode}, which needs no login"
        if found["logged_in"]:
            return "", "logged in"
        return "login", "not logged in: run `wandb login`, or set WANDB_MODE=offline"
    if name == "mlflow":
        where = redact(str(found["uri"]))
        if found.get("reachable") is False:
            return "server", f"no server answers at {where} ({found['answer']})"
        return "", f"would log to {where}" + (", which answers" if "answer" in found else "")
    return "", ""


# --- steps


def recording() -> Finding:
    """Say whether this torch has what recorded steps are built on."""
    from sbi_ignite.capture.private_torch import cannot_record

    reason = cannot_record()
    if reason:
        return Finding(
            "steps",
            "recording",
            "note",
            f"not possible, so that torch computes every step by itself: {reason}",
        )
    return Finding(
        "steps",
        "recording",
        "ok",
        "possible: steps can be recorded once and repeated without Python",
    )


def _broken(section: str, name: str, text: str, **details: Any) -> Finding:
    return Finding(section, name, "broken", text, details)


def _line(error: object) -> str:
    """Return an error in a line, without secrets."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return redact(" ".join(text.split()))[:300]
