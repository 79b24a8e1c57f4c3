"""sbi after 0.27: builders are closures over configurations, one class per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import MethodType
from typing import Any

from torch import nn

from sbi_ignite.bridge.lines import sbi_0_27
from sbi_ignite.bridge.lines.network_call import (
    MARGINAL,
    MIXED,
    VECTOR_FIELD,
    NetworkCall,
    UndescribableError,
)

NAME = "main"
_CONFIGS = "sbi.neural_nets.net_builders.estimator_configs"


class Trainer(sbi_0_27.Trainer):
    """A trainer of sbi after 0.27."""

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are not frozen.

        Raises:
            TypeError: If all are, in sbi's words.
        """
        if not self.shares_sbis_loop:
            return super().trained_parameters()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if not parameters:
            raise TypeError(
                f"{type(self.trainer).__name__} cannot train {type(self.network).__name__}: it has "
                "no trainable parameters."
            )
        return parameters

    @staticmethod
    def describe_builder(build: Any) -> NetworkCall:
        """Return what a builder does, as data."""
        return sbi_0_27.described(build, _function)


def _function(build: Any) -> NetworkCall:
    """Return the call of a method or closure of sbi's."""
    if isinstance(build, MethodType) and build.__name__ == "build":
        return _call_of(build.__self__, ("x",))
    if getattr(build, "__module__", "") == "sbi.inference.trainers.base":
        outer, cells = sbi_0_27.factory_and_cells(build, "sbi.inference.trainers.base")
        if outer.endswith("._wrap_builder") and {"builder", "input_is_theta"} <= cells.keys():
            return _call_of(cells["builder"], _order(cells["input_is_theta"]))
        raise UndescribableError(f"{outer} is not a way in which sbi makes builders")
    factory, cells = sbi_0_27.factory_and_cells(build, "sbi.neural_nets.factory")
    if factory == "_legacy_density_build_fn":
        name = "posterior_nn" if cells["input_is_theta"] else "likelihood_nn"
        return sbi_0_27.call_of_factory(name, build.__name__, cells)
    if build.__name__ == "build_fn_snpe_a":
        call = _call_of(cells["base"], ("theta", "x"))
        without = {n: v for n, v in call.keywords.items() if n != "num_components"}
        return NetworkCall(call.function, call.batches, without, frozenset({"num_components"}))
    if "config" in cells:
        return _call_of(cells["config"], _order(factory != "likelihood_nn"))
    return sbi_0_27.call_of_factory(factory, build.__name__, cells)


def _order(input_is_theta: bool) -> tuple[str, ...]:
    return ("theta", "x") if input_is_theta else ("x", "theta")


def _call_of(config: Any, batches: tuple[str, ...]) -> NetworkCall:
    """Return the call that a configuration's `build` makes."""
    kind = type(config)
    if kind.__module__ != _CONFIGS or not is_dataclass(kind):
        raise UndescribableError(f"{kind.__qualname__} is not a configuration of sbi.neural_nets")
    if kind.__name__ == "MixedConfig":
        return NetworkCall(MIXED, batches, _flat(config))
    keywords = dict(config._build_kwargs())
    if hasattr(config, "estimator_type"):
        score = {"estimator_type": config.estimator_type, "sde_type": config.sde_type or "ve"}
        return NetworkCall(VECTOR_FIELD, batches, {**score, **keywords})
    if hasattr(kind, "_WHICH_NF"):
        return NetworkCall(MARGINAL, batches, {"which_nf": kind._WHICH_NF, **keywords})
    return NetworkCall(kind._BUILD_FN.__name__, batches, keywords)


_SAME_IN_MIXED = (
    "num_categories_per_variable",
    "embedding_net",
    "combined_embedding_net",
    "log_transform_x",
    "discrete_hidden_layers",
    "dropout_probability",
)


def _flat(mixed: Any) -> Mapping[str, Any]:
    """Return a mixed configuration as the flat keywords that every line of sbi takes.

    Raises:
        UndescribableError: If they cannot say the same.
    """
    continuous = mixed.continuous
    model = continuous._BUILD_FN.__name__.removeprefix("build_")
    keywords = {n: v for n, v in continuous._build_kwargs().items() if n not in _REPLACED}
    width = continuous.hidden_features
    features = mixed.combined_embedding_features
    if features is not None and mixed.combined_embedding_net is None and features != width:
        raise UndescribableError("MixedConfig has combined_embedding_features of its own")
    dropout = keywords.pop("dropout_probability", mixed.dropout_probability)
    if dropout != mixed.dropout_probability and not model.startswith("zuko"):
        raise UndescribableError(
            "MixedConfig and its continuous part differ in dropout_probability"
        )
    return {
        **keywords,
        **{name: getattr(mixed, name) for name in _SAME_IN_MIXED},
        "flow_model": model,
        "z_score_y": mixed.z_score_condition,
        "hidden_features": width,
        "discrete_hidden_features": mixed.discrete_hidden_features or width,
        "continuous_hidden_features": width,
        **_UNUSED,
        **{name: keywords[name] for name in _UNUSED if name in keywords},
    }


_REPLACED = ("z_score_y", "embedding_net", "hidden_features")
"""Keywords of the continuous part that a mixed estimator replaces."""

_UNUSED = {"num_transforms": 5, "num_components": 10, "num_bins": 10, "tail_bound": 10.0}
"""Keywords whose defaults differ between lines of sbi, though models that lack them ignore them."""
