"""The front door: exactly these names, in these places."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import sbi_ignite

NAMES = {
    "__version__",
    # trainers
    "BNRE",
    "FMPE",
    "MNLE",
    "MNPE",
    "MarginalTrainer",
    "NLE",
    "NLE_A",
    "NPE",
    "NPE_A",
    "NPE_B",
    "NPE_C",
    "NPE_PFN",
    "NPSE",
    "NRE",
    "NRE_A",
    "NRE_B",
    "NRE_C",
    # settings
    "CheckpointConfig",
    "EarlyStopping",
    "LRSchedule",
    "LoggingConfig",
    "LossArgs",
    "LossArgsBNRE",
    "LossArgsMarginal",
    "LossArgsNLE",
    "LossArgsNPE",
    "LossArgsNRE",
    "LossArgsNRE_A",
    "LossArgsNRE_C",
    "LossArgsVF",
    "Stage",
    "TrainConfig",
    "WeightAveraging",
    # ensembles and tuning
    "Ensemble",
    "EnsembleSummary",
    "OptunaPruning",
    "train_ensemble",
    # doors and runner
    "Callback",
    "History",
    "TrainingState",
    "TrainingSummary",
    "LearningRateRange",
    "find_learning_rate",
    "patch_sbi",
    "run_training",
    "unpatch_sbi",
    # errors
    "ArgumentError",
    "CheckpointError",
    "CheckpointMismatchError",
    "DataError",
    "MissingPackageError",
    "NoSimulationsError",
    "NonFiniteLossError",
    "NotYetError",
    "SbiIgniteError",
    "SettingsError",
    "UnsupportedSbiError",
}
"""Names may be added here with the feature that they belong to; none may go."""


def test_no_public_name_has_gone():
    assert set(sbi_ignite.__all__) >= NAMES


def test_all_has_no_doubles_and_is_what_dir_shows():
    assert len(sbi_ignite.__all__) == len(set(sbi_ignite.__all__))
    assert dir(sbi_ignite) == sorted(sbi_ignite.__all__)


def test_every_public_name_is_importable():
    for name in sorted(sbi_ignite.__all__):
        scope: dict[str, object] = {}
        exec(f"from sbi_ignite import {name}", scope)
        assert scope[name] is getattr(sbi_ignite, name), name


def test_a_star_import_brings_the_public_names():
    scope: dict[str, object] = {}
    exec("from sbi_ignite import *", scope)
    assert set(sbi_ignite.__all__) <= set(scope)


def test_lazy_names_and_those_for_type_checkers_are_the_same():
    """What a type checker sees in the file is what an import finds."""
    source = inspect.getsource(sbi_ignite)
    for stub in ("methods/__init__.pyi", "inference/trainers.pyi"):
        source += (Path(sbi_ignite.__file__).parent / stub).read_text(encoding="utf-8")
    for name in set(sbi_ignite.__all__) - {"__version__"}:
        found = rf"^( *from \S+ import {name} as {name}|class {name}\(.*|{name} = \w+)$"
        assert re.search(found, source, flags=re.MULTILINE), name


def test_the_ep01_names_are_public():
    assert set(sbi_ignite.EP01_NAMES) <= set(sbi_ignite.__all__)


ERRORS = {
    "SettingsError": ValueError,
    "ArgumentError": TypeError,
    "UnsupportedSbiError": ImportError,
    "NotYetError": NotImplementedError,
    "DataError": ValueError,
    "NoSimulationsError": RuntimeError,
    "NonFiniteLossError": ValueError,
    "MissingPackageError": ImportError,
    "CheckpointError": RuntimeError,
    "CheckpointMismatchError": RuntimeError,
}


def test_errors_are_one_tree_and_also_the_builtin_that_a_caller_expects():
    for name in sorted(name for name in NAMES if name.endswith("Error")):
        kind = getattr(sbi_ignite, name)
        assert issubclass(kind, sbi_ignite.SbiIgniteError), name
        assert issubclass(kind, ERRORS.get(name, Exception)), name


def test_every_error_of_the_package_is_in_the_tree():
    home = importlib.import_module("sbi_ignite.exceptions")
    for name in home.__all__:
        kind = getattr(home, name)
        assert issubclass(kind, sbi_ignite.SbiIgniteError | Warning), name
