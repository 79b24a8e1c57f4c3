"""Describe as plain data how a network was built, and build it again from that.

sbi's builders (`posterior_nn("maf")` and the like) come down to one call of a function with names
and numbers, which is recorded. Made on made-up batches of the same shapes, the network has the
right structure, and its state dict, statistics for z-scoring included, supplies all values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sbi.neural_nets.factory import ZukoFlowType
from torch import Tensor, nn

from sbi_ignite.bridge.lines import (
    NetworkCall,
    UnbuildableError,
    UndescribableError,
    call_of_factory,
    describe_builder,
    line_name,
)
from sbi_ignite.exceptions import CheckpointError

NUM_ROWS = 128
"""Rows in made-up batches, at least."""

_CHUNK = 2**18
"""Numbers to look at in one go."""

MAX_CATEGORIES = 10_000
"""Different values in a column beyond which it is not recorded."""


def describe_network(build: Callable[..., Any], *batches: Tensor) -> dict[str, Any]:
    """Return plain data from which `rebuild_network` builds a network of the same structure.

    Args:
        build: The function that built the network: a trainer's builder.
        *batches: What it was called with: theta (num_rows, ...) and x (num_rows, ...); for
            marginal estimators x alone.

    Returns:
        "inputs": shapes, dtypes and discrete values; "builder": the call of sbi that it makes,
        None if it is not one of sbi's builders with plain arguments; "undescribable": in that
        case, the reason; "line": the line of sbi.
    """
    inputs = [_describe_batch(batch) for batch in batches]
    description = {"inputs": inputs, "undescribable": None, "line": line_name()}
    try:
        return {**description, "builder": _plain_call(describe_builder(build))}
    except UndescribableError as error:
        return {**description, "builder": None, "undescribable": str(error)}


def rebuild_network(
    description: Mapping[str, Any], build: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """Build a network again, with arbitrary values, and without touching any random state.

    Args:
        description: What `describe_network` returned.
        build: A callable `(theta, x) -> network` instead of the described one.

    Raises:
        CheckpointError: If the builder is not described and none is given, or if the installed
            sbi cannot build the network.
    """
    given = build is not None
    if build is None:
        if description.get("builder") is None:
            raise CheckpointError(
                "The run was trained with a network builder that cannot be written down "
                f"({description.get('undescribable')}). Pass build=, the function (theta, x) -> "
                "network that was given to the trainer."
            )
        build = _builder(description)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # sbi's builders would warn about batches that the user never passed.
        warnings.simplefilter("ignore")
        try:
            return build(*map(_made_up_batch, description["inputs"]))
        except (TypeError, ValueError, NotImplementedError) as error:
            if given:
                raise
            raise _cannot_build(description, error) from error


# --- builders


def _plain_call(call: NetworkCall) -> dict[str, Any]:
    """Return a call as JSON can hold it."""
    if call.awaits:
        raise UndescribableError(f"{call.function} lacks {', '.join(sorted(call.awaits))}")
    try:
        defaults = call.defaults()
    except UnbuildableError as error:
        raise UndescribableError(str(error)) from error
    return {
        "function": call.function,
        "batches": list(call.batches),
        "keywords": {name: _plain(value, name) for name, value in call.keywords.items()},
        "defaults": _those_that_are_plain(defaults),
    }


def _builder(description: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the builder that was described."""
    plain = description["builder"]
    try:
        call = _call(plain)
        defaults = {name: _value(value) for name, value in plain.get("defaults", {}).items()}
        return call.builder(defaults)
    except (UndescribableError, UnbuildableError, KeyError) as error:
        raise _cannot_build(description, error) from error


def _cannot_build(description: Mapping[str, Any], error: Exception) -> CheckpointError:
    return CheckpointError(
        "The installed sbi cannot build the network of a run by sbi "
        f"{description.get('line', '0.27')}: {error}. Install the sbi that is named in run.json, "
        "or pass build=."
    )


def _call(plain: Mapping[str, Any]) -> NetworkCall:
    """Return the call that was described, also by earlier releases of this package."""
    if "partial" in plain:
        return _call(plain["partial"]).with_keywords(_values(plain["keywords"]))
    if "factory" in plain:
        return call_of_factory(plain["factory"], plain["inner"], _values(plain["closure"]))
    return NetworkCall(plain["function"], tuple(plain["batches"]), _values(plain["keywords"]))


def _those_that_are_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = _plain(value, name)
        except UndescribableError:
            continue
    return found


def _plain(value: Any, name: str) -> Any:
    """Return what a builder holds as JSON can hold it; values that are not plain get a tag."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _plain(item, key) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        tag = "list" if isinstance(value, list) else "tuple"
        return {tag: [_plain(item, name) for item in value]}
    if isinstance(value, Tensor) and value.numel() <= MAX_CATEGORIES:
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, type) and value is getattr(nn, value.__name__, None):
        return {"layer": value.__name__}
    if isinstance(value, ZukoFlowType):
        return {"zuko": value.name}
    if type(value) is nn.Identity:
        return {"identity": True}
    raise UndescribableError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")


def _value(plain: Any) -> Any:
    """Return what `_plain` was given."""
    if not isinstance(plain, dict):
        return plain
    if "mapping" in plain:
        return _values(plain["mapping"])
    if "list" in plain or "tuple" in plain:
        return list(map(_value, plain["list"])) if "list" in plain else _as_tuple(plain["tuple"])
    if "tensor" in plain:
        return torch.tensor(plain["tensor"], dtype=_dtype(plain["dtype"]))
    if "dtype" in plain:
        return _dtype(plain["dtype"])
    if "layer" in plain:
        return _layer(plain["layer"])
    return ZukoFlowType[plain["zuko"]] if "zuko" in plain else nn.Identity()


def _values(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in plain.items()}


def _as_tuple(items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(_value, items))


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"run.json names {name!r} as a dtype, which torch does not know.")
    return found


def _layer(name: str) -> type[nn.Module]:
    found = getattr(nn, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(f"run.json names {name!r} as a layer, which torch does not know.")
    return found


# --- batches


def _describe_batch(batch: Tensor) -> dict[str, Any]:
    """Return shape and dtype of a batch, and the values of its discrete columns."""
    return {
        "shape": list(batch.shape[1:]),
        "dtype": str(batch.dtype).removeprefix("torch."),
        "discrete": _discrete_columns(batch),
    }


def _discrete_columns(batch: Tensor) -> dict[str, list[float]]:
    """Return the values that occur in columns of whole numbers, for mixed estimators.

    sbi treats such columns as discrete, and builds as many categories as there are values.
    """
    if batch.ndim != 2 or batch.is_complex():
        return {}
    step = max(1, _CHUNK // max(1, batch.shape[1]))
    parts = [(rows == rows.floor()).all(dim=0) for rows in batch.split(step)]
    whole = torch.stack(parts).all(dim=0).nonzero().reshape(-1).tolist()
    values = {str(column): batch[:, column].unique().tolist() for column in whole}
    return {column: found for column, found in values.items() if len(found) <= MAX_CATEGORIES}


def _made_up_batch(description: Mapping[str, Any]) -> Tensor:
    """Return a batch that looks like the described one."""
    discrete = {int(column): values for column, values in description["discrete"].items()}
    num_rows = max(NUM_ROWS, *(2 * len(values) for values in discrete.values()), 0)
    batch = torch.randn(num_rows, *description["shape"]).to(_dtype(description["dtype"]))
    for column, values in discrete.items():
        repeated = torch.tensor(values, dtype=batch.dtype).repeat(-(-num_rows // len(values)))
        batch[:, column] = repeated[:num_rows]
    return batch
