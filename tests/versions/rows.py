"""The combinations of versions that are tested, and the tests that run with each.

Read by nox too, whose Python need have nothing of this project installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

FAMILIES = ("npe_c_maf", "mnle", "nle_a", "nre_NRE_B", "fmpe", "npse_ve", "marginal", "resume")
"""Scenarios of the parity tests, one for each family of methods, and one resumed training."""


@dataclass(frozen=True)
class Part:
    """A part of the test suite.

    Attributes:
        about: What these tests show, in words for the page.
        paths: Files and folders of tests.
        names: Which of their tests, as pytest's -k says it; all of them if empty.
    """

    about: str
    paths: tuple[str, ...]
    names: str = ""

    @property
    def arguments(self) -> list[str]:
        """Return pytest's arguments."""
        return [*self.paths, *(["-k", self.names] if self.names else [])]


def _parity(*tests: str) -> Part:
    scenarios = " or ".join(f"[{name}]" for name in FAMILIES)
    return Part(
        "with sbi's keywords, weights, epochs and losses are sbi's, bit for bit",
        ("tests/parity/test_parity.py",),
        f"({' or '.join(tests)}) and ({scenarios})",
    )


PARTS: Mapping[str, Part] = {
    "numbers": _parity("test_renamed_trainers", "test_traced_steps"),
    "recording": Part(
        "recorded steps give what torch's own steps give; what cannot be recorded is left to torch",
        ("tests/capture/test_recorder.py", "tests/capture/test_verification.py"),
        "recorder or networks_give_the_same or auto_traces or cannot_be_traced or training_cut",
    ),
    "private names": Part(
        "training works where torch lacks a private name that recording is built on",
        ("tests/capture/test_private_torch.py",),
        "every_private_name or torch_without_private_names",
    ),
    "optimizers": Part("optimizers give torch's numbers", ("tests/optim",)),
    "resume": Part(
        "trainings continue, also those that earlier versions of this package have saved",
        ("tests/inference/test_resume.py", "tests/runs/test_earlier_builds.py"),
    ),
    "sbi's versions": Part(
        "what is asked of sbi is there, and where 0.26 and 0.27 differ, both are served",
        ("tests/bridge/test_lines.py", "tests/bridge/test_probe.py"),
    ),
    "settings": Part("settings are read, checked and traced to their origin", ("tests/settings",)),
    "trackers": Part(
        "stdout, TensorBoard, wandb, MLflow and JSON lines get what they promise",
        ("tests/loggers/test_laws.py",),
    ),
    "ways in": Part(
        "the changed import, the patch and the command line lead to this package",
        (
            "tests/bridge/test_patch.py",
            "tests/bridge/test_workers.py",
            "tests/inference/test_renamed_import.py",
            "tests/test_main.py",
            "tests/cli/test_run_command.py",
        ),
        "test_patch or test_renamed_import or unmodified_script or by_joblib or test_run_command",
    ),
}
"""Chosen parts, by their name in the table."""

ALL = tuple(name for name in PARTS if name not in ("private names", "sbi's versions"))
OF_TORCH = ("numbers", "recording", "optimizers", "resume", "ways in")
OF_SBI = ("numbers", "recording", "resume", "sbi's versions", "ways in")
OF_SETTINGS = ("settings", "resume", "ways in")
OF_LOGGERS = ("settings", "trackers")
"""The parts that rows run, by what they change."""


@dataclass(frozen=True)
class Row:
    """One combination of versions: the newest of everything, except for what is named here.

    Attributes:
        name: The name of its row and of its nox session.
        python: "3.12", for example; None takes the Python that runs the command.
        pins: Requirements for pip.
        newest_torch: Whether the newest torch is taken. `TORCH` is taken elsewhere unless `pins`
            names another.
        constrained: Whether `constraints.txt` applies.
        parts: Names in `PARTS`.
        note: Words for the table.
    """

    name: str
    python: str | None = None
    pins: tuple[str, ...] = ()
    newest_torch: bool = False
    constrained: bool = False
    parts: tuple[str, ...] = ALL
    note: str = ""

    def requirements(self, sbi_main: str) -> list[str]:
        """Return what is installed beside this project.

        Args:
            sbi_main: Where sbi's main branch is installed from.
        """
        names_torch = self.newest_torch or any(pin.startswith("torch==") for pin in self.pins)
        pins = [f"sbi @ {sbi_main}" if pin == SBI_MAIN else pin for pin in self.pins]
        return pins if names_torch or self.constrained else [TORCH, *pins]


TORCH = "torch==2.13.0"
"""The torch of all rows that are not about torch."""

SBI_MAIN = "sbi @ main"
"""Stands for sbi's main branch in the pins of a row."""


def lower_bounds(*distributions: str) -> tuple[str, ...]:
    """Return requirements for the lower bounds that pyproject.toml declares.

    Args:
        distributions: Names, each declared with ">=".

    Example:
        >>> lower_bounds("pydantic")
        ('pydantic==2.9',)
    """
    # Python 3.10 has no tomllib, and nox's Python need not have its predecessor.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounds = dict(re.findall(r'"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)[^"]*"', text))
    return tuple(f"{name}=={bounds[name]}" for name in distributions)


TORCHES = ("2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.14.1")
"""The last release of each series between the oldest torch, `TORCH` and the newest one."""

ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("newest", note="no constraints"),
        Row("constraints", constrained=True, note="`constraints.txt`"),
        *(Row(f"python-{v}", python=v) for v in ("3.10", "3.11", "3.12", "3.13", "3.14")),
        Row("without-torch.jit", parts=("private names",), note="3.14 simulated: no `torch.jit`"),
        Row("numpy-1.26", pins=lower_bounds("numpy")),
        Row(
            "lowest-settings", pins=lower_bounds("pydantic", "pydantic-settings"), parts=OF_SETTINGS
        ),
        Row(
            "lowest-loggers", pins=lower_bounds("wandb", "mlflow", "tensorboard"), parts=OF_LOGGERS
        ),
        Row(
            "lowest-tools",
            pins=lower_bounds("typer", "rich", "tomlkit", "joblib", "cloudpickle"),
            parts=("ways in",),
        ),
        Row("lowest-ignite", pins=lower_bounds("pytorch-ignite")),
        Row("torch-lowest", pins=lower_bounds("torch"), parts=OF_TORCH),
        *(Row(f"torch-{v}", pins=(f"torch=={v}",), parts=OF_TORCH) for v in TORCHES),
        Row("torch-newest", newest_torch=True, parts=OF_TORCH),
        Row("sbi-0.26.1", pins=("sbi==0.26.1",), parts=OF_SBI),
        Row("sbi-0.27.0", pins=("sbi==0.27.0",), parts=OF_SBI),
        Row("sbi-main", pins=(SBI_MAIN,), parts=OF_SBI),
    )
}
"""All combinations by name, in the order of the table."""

SHOWN = (
    "sbi",
    "torch",
    "numpy",
    "pydantic",
    "pydantic-settings",
    "pytorch-ignite",
    "wandb",
    "mlflow",
    "tensorboard",
)
"""Distributions whose versions are recorded."""
