"""The call by which sbi builds a network, as data that every supported line of sbi can carry out.

All of sbi's builders end in a function of `sbi.neural_nets.net_builders`. Its name, which batch it
gets as which argument, and its keywords are what the lines agree on.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import FunctionType
from typing import Any

_PAGES = ("flow", "mdn", "classifier", "mixed_nets", "vector_field_nets")
_BATCHES = ("batch_x", "batch_y")
VECTOR_FIELD = "build_vector_field_estimator"
MARGINAL = "build_zuko_unconditional_flow"
MIXED = "_build_mixed_density_estimator"
_VECTOR_FIELD_NETS = {
    "mlp": "build_standard_mlp_network",
    "ada_mlp": "build_adamlp_network",
    "transformer": "build_transformer_network",
    "transformer_cross_attn": "build_transformer_network",
}
"""Functions to which `VECTOR_FIELD` hands its other keywords on."""

_OFF: Mapping[str, Any] = {"compose_standardization": False, "x_dist": None}
"""Keywords that older lines of sbi lack, with the values at which they change nothing."""


class UndescribableError(Exception):
    """A builder is not one of sbi's, or holds something that plain data cannot."""


class UnbuildableError(Exception):
    """The installed sbi cannot carry out a call."""


@dataclass(frozen=True)
class NetworkCall:
    """A call of a function of sbi that builds a network.

    Attributes:
        function: Name of the function.
        batches: Which batches it gets, as "theta" or "x", in the order of its arguments.
        keywords: Its keywords.
        awaits: Keywords that are still to come, from `functools.partial`.

    Example:
        >>> NetworkCall("build_mdn", ("theta", "x"), {"num_components": 3}).function
        'build_mdn'
    """

    function: str
    batches: tuple[str, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    awaits: frozenset[str] = frozenset()

    def with_keywords(self, keywords: Mapping[str, Any]) -> NetworkCall:
        """Return the call with the keywords that it has been waiting for.

        Raises:
            UndescribableError: If it is not waiting for one of them.
        """
        if not keywords.keys() <= self.awaits:
            unknown = ", ".join(keywords.keys() - self.awaits)
            raise UndescribableError(
                f"a partial gives {unknown}, which {self.function} has already"
            )
        return replace(
            self, keywords={**self.keywords, **keywords}, awaits=self.awaits - keywords.keys()
        )

    def defaults(self) -> dict[str, Any]:
        """Return what the installed sbi takes for keywords that are left out."""
        return {n: v for n, v in _defaults(self._functions()).items() if n not in self.keywords}

    def builder(self, defaults: Mapping[str, Any]) -> Callable[..., Any]:
        """Return the function (theta, x) -> network, or (x) -> network, that makes the call.

        Args:
            defaults: What the sbi of the run took for keywords that are left out; where the
                installed one takes other values, they are given to it.

        Raises:
            UnbuildableError: If the installed sbi has no such function or keyword.
        """
        if not {*self.batches} <= {"theta", "x"}:
            raise UnbuildableError(f"{self.function} gets {self.batches!r} there")
        functions = self._functions()
        parameters = inspect.signature(functions[0]).parameters
        unknown = {n: v for n, v in self.keywords.items() if n not in parameters}
        idle = {n for n, v in unknown.items() if n in _OFF and v is _OFF[n]}
        takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        refused = [n for n in unknown if n in _OFF or not takes_more if n not in idle]
        if refused:
            raise UnbuildableError(f"its {self.function} does not take {', '.join(refused)}")
        strange = [repr(name) for name in self.batches if name not in ("theta", "x")]
        if strange:
            raise UnbuildableError(f"it builds from theta and x, not from {', '.join(strange)}")
        here = _defaults(functions)
        other = {n: v for n, v in defaults.items() if n in here and _differ(here[n], v)}
        keywords = {n: v for n, v in {**other, **self.keywords}.items() if n not in idle}

        def build(*batches: Any) -> Any:
            named: dict[str, Any] = dict(
                zip(("theta", "x") if len(batches) == 2 else ("x",), batches, strict=True)
            )
            given = {to: named[of] for to, of in zip(_BATCHES, self.batches, strict=False)}
            return functions[0](**given, **keywords)

        return build

    def _functions(self) -> list[FunctionType]:
        """Return the function, and that of the network inside a vector field."""
        net = self.keywords.get("net", "mlp")
        inner = _VECTOR_FIELD_NETS.get(net) if isinstance(net, str) else None
        names = [self.function, *([inner] if self.function == VECTOR_FIELD and inner else [])]
        return [function_named(name) for name in names]


def function_named(name: str) -> FunctionType:
    """Return the function of sbi that builds networks and has this name.

    Args:
        name: Name of a function of `sbi.neural_nets.net_builders`.

    Raises:
        UnbuildableError: If the installed sbi has none of this name.
    """
    for page in _PAGES:
        module = importlib.import_module(f"sbi.neural_nets.net_builders.{page}")
        found = vars(module).get(name) if name.startswith("build_") or name == MIXED else None
        if isinstance(found, FunctionType) and found.__module__.startswith("sbi."):
            return found
    raise UnbuildableError(f"it has no function {name} in sbi.neural_nets.net_builders")


def _defaults(functions: list[FunctionType]) -> dict[str, Any]:
    """Return defaults of the first function, and those of the second that are left to it."""
    found: dict[str, Any] = {}
    for function in functions:
        for name, value in _defaults_of(function).items():
            found.setdefault(name, value)
    return found


@cache
def _defaults_of(function: FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _differ(here: Any, there: Any) -> bool:
    """Return whether two defaults differ; modules are compared by their kind."""
    return type(here) is not type(there) or (isinstance(here, str | int | float) and here != there)
