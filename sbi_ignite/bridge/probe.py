"""Find out what the installed sbi has, and which line it belongs to.

Version numbers do not tell: sbi's development version calls itself 0.27.0, too.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import version
from types import ModuleType
from typing import Any

from sbi_ignite.exceptions import UnsupportedSbiError

_BASE = "sbi.inference.trainers.base"
_LOOP = ("train_loader", "val_loader", "train_config", "loss_args", "summarization_kwargs")
_METHODS = (
    "append_simulations",
    "get_simulations",
    "get_dataloaders",
    "_initialize_neural_network",
    "_run_training_loop",
    "_train_epoch",
    "_validate_epoch",
    "_get_losses",
    "_loss",
    "_converged",
    "_report_convergence_at_end",
    "_summarize_epoch",
    "_summarize",
    "_describe_round",
    "_maybe_show_progress",
)
"""Methods of `NeuralInference` that are called or replaced."""

_ATTRIBUTES = (
    "_build_neural_net",
    "_neural_net",
    "_device",
    "_prior",
    "_round",
    "_data_round_index",
    "_theta_roundwise",
    "_x_roundwise",
    "_prior_masks",
    "_val_loss",
    "_best_val_loss",
    "_best_model_state_dict",
    "_epochs_since_last_improvement",
    "_summary",
    "_tracker",
    "_show_progress_bars",
)
"""Attributes that trainers have, and that are read or written."""

_TRAINERS = (
    *("NPE_A", "NPE_B", "NPE_C", "MNPE", "NLE_A", "MNLE", "NRE_A", "NRE_B", "NRE_C", "BNRE"),
    *("FMPE", "NPSE", "MarginalTrainer"),
)
_NAMES = (
    (_BASE, "NeuralInference"),
    (_BASE, "infer"),
    ("sbi.inference.trainers.npe.npe_base", "PosteriorEstimatorTrainer"),
    ("sbi.inference.trainers.nle.nle_base", "LikelihoodEstimatorTrainer"),
    ("sbi.inference.trainers.nre.nre_base", "RatioEstimatorTrainer"),
    ("sbi.inference.trainers.vfpe.base_vf_inference", "VectorFieldTrainer"),
    ("sbi.inference.trainers._contracts", "TrainConfig"),
    ("sbi.inference.trainers._contracts", "LossArgsVF"),
    ("sbi.neural_nets.factory", "ZukoFlowType"),
    *((f"sbi.neural_nets.net_builders.{page}", "") for page in ("flow", "mdn", "classifier")),
    *((f"sbi.neural_nets.net_builders.{page}", "") for page in ("mixed_nets", "vector_field_nets")),
    *(("sbi.inference", name) for name in _TRAINERS),
)
"""Modules, and names in them, that are imported."""

_REPORTS = (["epoch", "max_num_epochs"], ["epoch", "stop_after_epochs", "max_num_epochs"])
"""The ways in which `_report_convergence_at_end` can be called."""


def missing() -> list[str]:
    """Return what the installed sbi lacks of what is needed here, as one would write it."""
    lacking = [
        f"{module}.{name}".removesuffix(".") for module, name in _NAMES if not _has(module, name)
    ]
    if lacking:
        return lacking
    cls: Any = importlib.import_module(_BASE).NeuralInference
    lacking = [f"NeuralInference.{name}" for name in _METHODS if not hasattr(cls, name)]
    spoken = _spoken_in(cls)
    lacking += [f"the attribute {name} of trainers" for name in _ATTRIBUTES if name not in spoken]
    if not lacking and _parameters(cls._run_training_loop)[: len(_LOOP)] != list(_LOOP):
        lacking.append(f"NeuralInference._run_training_loop({', '.join(_LOOP)})")
    if not lacking and _parameters(cls._report_convergence_at_end) not in _REPORTS:
        lacking.append(f"NeuralInference._report_convergence_at_end({', '.join(_REPORTS[0])})")
    return lacking


def check_sbi() -> None:
    """Refuse to work with an sbi that lacks what is needed here.

    Raises:
        UnsupportedSbiError: If it does; the message names what is missing.
    """
    lacking = missing()
    if lacking:
        import sbi

        found = getattr(sbi, "__version__", None) or version("sbi")
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise UnsupportedSbiError(
            f"sbi {found} is installed, which lacks what sbi_ignite builds on: "
            f"{', '.join(lacking[:4])}{more}. Install a version that has it: "
            'pip install "sbi>=0.26.1,<0.28"'
        )


def line() -> ModuleType:
    """Return the page of the line of sbi that the installed one belongs to, the newest first."""
    from sbi_ignite.bridge.lines import sbi_0_26, sbi_0_27, sbi_main

    cls: Any = importlib.import_module(_BASE).NeuralInference
    if hasattr(cls, "_wrap_builder"):
        return sbi_main
    asks_twice = "stop_after_epochs" in _parameters(cls._report_convergence_at_end)
    return sbi_0_26 if asks_twice else sbi_0_27


def _has(module: str, name: str) -> bool:
    """Return whether sbi has a module, and a name in it; an error inside sbi is not hidden."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "sbi":
            raise
        return False
    return not name or hasattr(found, name)


def _spoken_in(cls: type) -> set[str]:
    """Return the names of attributes that the methods of sbi's trainers read and write."""
    import sbi.inference

    kinds = (cls, *(getattr(sbi.inference, name) for name in _TRAINERS))
    classes = {c for kind in kinds for c in kind.__mro__ if c.__module__.startswith("sbi.")}
    codes = (getattr(method, "__code__", None) for c in classes for method in vars(c).values())
    return {name for code in codes if code is not None for name in code.co_names}


def _parameters(method: Any) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]
