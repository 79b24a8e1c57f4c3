"""sbi 0.27: builders are closures over a model's name and keywords."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any

from sbi_ignite.bridge.lines.common import SbiTrainer, warn_budget_spent
from sbi_ignite.bridge.lines.network_call import (
    MARGINAL,
    VECTOR_FIELD,
    NetworkCall,
    UndescribableError,
)
from sbi_ignite.bridge.ownership import is_sbis_own

NAME = "0.27"


class Trainer(SbiTrainer):
    """A trainer of sbi 0.27."""

    def report_convergence(self, patience: int | None, max_epochs: int) -> None:
        """Print or warn as sbi does, with the warning attributed to the user's line."""
        if is_sbis_own(self.trainer, "_report_convergence_at_end"):
            self.say_how_it_ended(max_epochs)
        else:
            self.trainer._report_convergence_at_end(self.trainer.epoch, max_epochs)

    def say_how_it_ended(self, max_epochs: int) -> None:
        """Print that training has converged, or warn that the budget of epochs ran out."""
        epoch = self.trainer.epoch
        if epoch <= max_epochs:
            print("\r", f"Neural network successfully converged after {epoch} epochs.", end="")
        else:
            warn_budget_spent(max_epochs)

    @staticmethod
    def describe_builder(build: Any) -> NetworkCall:
        """Return what a builder does, as data."""
        return described(build, _closure)


def described(build: Any, of_function: Any) -> NetworkCall:
    """Return what a builder does, as data, with keywords given by `functools.partial`.

    Args:
        build: A trainer's builder.
        of_function: Returns the call of a builder that is not a partial.

    Raises:
        UndescribableError: If it is not one of sbi's.
    """
    if isinstance(build, partial):
        if build.args:
            raise UndescribableError("a partial gives positional arguments")
        return described(build.func, of_function).with_keywords(build.keywords)
    return of_function(build)


def _closure(build: Any) -> NetworkCall:
    """Return the call of a function that one of sbi's factories has returned."""
    factory, cells = factory_and_cells(build, "sbi.neural_nets.factory")
    return call_of_factory(factory, build.__name__, cells)


def factory_and_cells(build: Any, module: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the function that made a closure, and what it closes over.

    Args:
        build: The closure.
        module: The module of sbi that the function has to be in.

    Raises:
        UndescribableError: If it is something else.
    """
    name = str(getattr(build, "__qualname__", type(build).__qualname__))
    outer = name.rpartition(".<locals>.")[0]
    if not isinstance(build, FunctionType) or build.__module__ != module or not outer:
        raise UndescribableError(f"{name} is not made by a factory of sbi.neural_nets")
    names, cells = build.__code__.co_freevars, build.__closure__ or ()
    return outer, {n: cell.cell_contents for n, cell in zip(names, cells, strict=True)}


def call_of_factory(factory: str, inner: str, cells: Mapping[str, Any]) -> NetworkCall:
    """Return the call that a closure of one of sbi's factories makes.

    Args:
        factory: Name of the factory.
        inner: Name of the closure.
        cells: What it closes over.

    Raises:
        UndescribableError: If it is of no known kind.
    """
    keywords, theta_first = dict(cells.get("builder_kwargs", {})), ("theta", "x")
    if factory == "posterior_nn" and inner == "build_fn_snpe_a":
        return NetworkCall("build_mdn", theta_first, keywords, frozenset({"num_components"}))
    if factory in ("posterior_nn", "likelihood_nn") and "model" in cells:
        order = theta_first if factory == "posterior_nn" else ("x", "theta")
        return NetworkCall(_function_of(cells["model"]), order, keywords)
    if factory == "classifier_nn" and "model" in cells:
        return NetworkCall(f"build_{cells['model']}_classifier", theta_first, keywords)
    if factory == "posterior_flow_nn":
        return NetworkCall(VECTOR_FIELD, theta_first, {"estimator_type": "flow", **keywords})
    if factory == "posterior_score_nn" and "sde_type" in cells:
        kind = {"estimator_type": "score", "sde_type": cells["sde_type"]}
        return NetworkCall(VECTOR_FIELD, theta_first, {**kind, **keywords})
    if factory == "marginal_nn" and "model" in cells:
        keywords["which_nf"] = cells["model"].value.upper()
        return NetworkCall(MARGINAL, ("x",), keywords)
    raise UndescribableError(f"{factory}.<locals>.{inner} is not made by a factory known here")


def _function_of(model: str) -> str:
    """Return the name of the function that builds a model; NPE-PFN's has one of its own."""
    return "build_tabpfn_flow" if model == "tabpfn" else f"build_{model}"
