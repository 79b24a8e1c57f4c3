"""Training infrastructure for simulation-based inference: the public names, and nothing else.

    from sbi_ignite import NPE, TrainConfig, LossArgsNPE, EarlyStopping

Names are imported when they are first used, so that `import sbi_ignite` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sbi_ignite._version import __version__ as __version__
from sbi_ignite.methods.table import LOSS_ARGS, TRAINERS

if TYPE_CHECKING:
    from sbi_ignite.bridge.learning_rate import LearningRateRange as LearningRateRange
    from sbi_ignite.bridge.learning_rate import find_learning_rate as find_learning_rate
    from sbi_ignite.bridge.load import load_estimator as load_estimator
    from sbi_ignite.bridge.patch import patch_sbi as patch_sbi
    from sbi_ignite.bridge.patch import unpatch_sbi as unpatch_sbi
    from sbi_ignite.callback import Callback as Callback
    from sbi_ignite.callback import History as History
    from sbi_ignite.callback import TrainingState as TrainingState
    from sbi_ignite.data.convert import convert_simulations as convert_simulations
    from sbi_ignite.data.simulate import simulate_to_file as simulate_to_file
    from sbi_ignite.data.simulations import Simulations as Simulations
    from sbi_ignite.data.simulations import open_simulations as open_simulations
    from sbi_ignite.data.transformed import with_transform as with_transform
    from sbi_ignite.data.writer import SimulationWriter as SimulationWriter
    from sbi_ignite.diagnostics import SBC as SBC
    from sbi_ignite.diagnostics import Coverage as Coverage
    from sbi_ignite.diagnostics import ParameterCheck as ParameterCheck
    from sbi_ignite.diagnostics import PosteriorCheck as PosteriorCheck
    from sbi_ignite.diagnostics import PosteriorPairplot as PosteriorPairplot
    from sbi_ignite.diagnostics import check_posterior as check_posterior
    from sbi_ignite.ensembles.ensemble import Ensemble as Ensemble
    from sbi_ignite.ensembles.ensemble import train_ensemble as train_ensemble
    from sbi_ignite.ensembles.summary import EnsembleSummary as EnsembleSummary
    from sbi_ignite.exceptions import ArgumentError as ArgumentError
    from sbi_ignite.exceptions import CheckpointError as CheckpointError
    from sbi_ignite.exceptions import CheckpointMismatchError as CheckpointMismatchError
    from sbi_ignite.exceptions import DataError as DataError
    from sbi_ignite.exceptions import MissingPackageError as MissingPackageError
    from sbi_ignite.exceptions import NonFiniteLossError as NonFiniteLossError
    from sbi_ignite.exceptions import NoSimulationsError as NoSimulationsError
    from sbi_ignite.exceptions import NotYetError as NotYetError
    from sbi_ignite.exceptions import RankFailedError as RankFailedError
    from sbi_ignite.exceptions import SbiIgniteError as SbiIgniteError
    from sbi_ignite.exceptions import SbiIgniteWarning as SbiIgniteWarning
    from sbi_ignite.exceptions import SettingsError as SettingsError
    from sbi_ignite.exceptions import UnsupportedSbiError as UnsupportedSbiError
    from sbi_ignite.inference.trainers import *  # noqa: F403 # all trainers in the table of methods
    from sbi_ignite.methods import *  # noqa: F403 # all loss arguments in it
    from sbi_ignite.runs.load import Run as Run
    from sbi_ignite.runs.load import load_run as load_run
    from sbi_ignite.settings import CheckpointConfig as CheckpointConfig
    from sbi_ignite.settings import EarlyStopping as EarlyStopping
    from sbi_ignite.settings import LoggingConfig as LoggingConfig
    from sbi_ignite.settings import LRSchedule as LRSchedule
    from sbi_ignite.settings import Stage as Stage
    from sbi_ignite.settings import TrainConfig as TrainConfig
    from sbi_ignite.settings import WeightAveraging as WeightAveraging
    from sbi_ignite.summary import TrainingSummary as TrainingSummary
    from sbi_ignite.training.run import run_training as run_training
    from sbi_ignite.tuning import OptunaPruning as OptunaPruning

_HOMES = {
    "callback": "Callback History TrainingState",
    "data.convert": "convert_simulations",
    "data.simulate": "simulate_to_file",
    "data.simulations": "Simulations open_simulations",
    "data.transformed": "with_transform",
    "data.writer": "SimulationWriter",
    "diagnostics": ("Coverage ParameterCheck PosteriorCheck PosteriorPairplot SBC check_posterior"),
    "training.run": "run_training",
    "exceptions": (
        "ArgumentError CheckpointError CheckpointMismatchError DataError MissingPackageError "
        "NoSimulationsError NonFiniteLossError NotYetError RankFailedError SbiIgniteError "
        "SbiIgniteWarning SettingsError UnsupportedSbiError"
    ),
    "bridge.learning_rate": "LearningRateRange find_learning_rate",
    "bridge.load": "load_estimator",
    "bridge.patch": "patch_sbi unpatch_sbi",
    "ensembles.ensemble": "Ensemble train_ensemble",
    "ensembles.summary": "EnsembleSummary",
    "runs.load": "Run load_run",
    "settings": (
        "CheckpointConfig EarlyStopping LRSchedule LoggingConfig Stage TrainConfig WeightAveraging"
    ),
    "summary": "TrainingSummary",
    "tuning": "OptunaPruning",
}
_MODULE_OF = {
    **{name: module for module, names in _HOMES.items() for name in names.split()},
    **dict.fromkeys((*TRAINERS, "NLE", "NPE", "NPE_PFN", "NRE"), "inference"),
    **dict.fromkeys(LOSS_ARGS, "methods"),
}

EP01_NAMES = (
    "Callback",
    "EarlyStopping",
    "LoggingConfig",
    "LossArgs",
    "LossArgsBNRE",
    "LossArgsNLE",
    "LossArgsNPE",
    "LossArgsNRE",
    "LossArgsNRE_A",
    "LossArgsNRE_C",
    "LossArgsVF",
    "TrainConfig",
    "TrainingSummary",
    "run_training",
)
"""What `sbi.training` offers while the patch is on."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; say which there are if asked for `__all__`."""
    if name == "__all__":
        return _public_names()
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return ["__version__", *sorted(_MODULE_OF)]


def _public_names() -> list[str]:
    """Return the public names that the installed sbi allows: not every release has NPE_PFN."""
    inference = importlib.import_module(f"{__name__}.inference")
    return [n for n in __dir__() if _MODULE_OF.get(n) != "inference" or hasattr(inference, n)]
