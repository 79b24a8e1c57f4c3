"""Describe as plain data how a network was built, and build it again from that.

sbi's factories (`posterior_nn("maf")` and the like) return closures over names and numbers, which
are recorded. Built on made-up batches of the same shapes, the network has the right structure, and
its state dict, statistics for z-scoring included, supplies all values. The names in sbi's closures
are those of 0.27.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from sbi_ignite.exceptions import CheckpointError

FACTORIES = (
    "posterior_nn",
    "likelihood_nn",
    "classifier_nn",
    "posterior_flow_nn",
    "posterior_score_nn",
    "marginal_nn",
)
"""Functions of `sbi.neural_nets.factory` whose closures can be described."""

NUM_ROWS = 128
"""Rows in made-up batches, at least."""

MAX_CATEGORIES = 10_000
"""Different values in a column beyond which it is not recorded."""


class UndescribableError(Exception):
    """A builder holds something that plain data cannot."""


def describe_network(build: Callable[..., Any], *batches: Tensor) -> dict[str, Any]:
    """Return plain data from which `rebuild_network` builds a network of the same structure.

    Args:
        build: The function that built the network: a trainer's `_build_neural_net`.
        *batches: What it was called with: theta (num_rows, ...) and x (num_rows, ...); for
            marginal estimators x alone.

    Returns:
        "inputs": shapes, dtypes and discrete values; "builder": the function, None if it is not
        one of sbi's factories with plain arguments; "undescribable": in that case, the reason.
    """
    inputs = [_describe_batch(batch) for batch in batches]
    try:
        return {"inputs": inputs, "builder": _describe_builder(build), "undescribable": None}
    except UndescribableError as error:
        return {"inputs": inputs, "builder": None, "undescribable": str(error)}


def rebuild_network(
    description: Mapping[str, Any], build: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """Build a network again, with arbitrary values, and without touching any random state.

    Args:
        description: What `describe_network` returned.
        build: A callable `(theta, x) -> network` instead of the described one.

    Raises:
        CheckpointError: If the builder is not described and none is given.
    """
    if build is None:
        if description.get("builder") is None:
            raise CheckpointError(
                "The run was trained with a network builder that cannot be written down "
                f"({description.get('undescribable')}). Pass build=, the function (theta, x) -> "
                "network that was given to the trainer."
            )
        build = _builder(description["builder"])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # sbi's builders would warn about batches that the user never passed.
        warnings.simplefilter("ignore")
        return build(*map(_made_up_batch, description["inputs"]))


# --- builders


def _describe_builder(build: Any) -> dict[str, Any]:
    """Return the builder as plain data."""
    if isinstance(build, partial):
        return {
            "partial": _describe_builder(build.func),
            "args": [_plain(value, "argument") for value in build.args],
            "keywords": {name: _plain(value, name) for name, value in build.keywords.items()},
        }
    name = getattr(build, "__qualname__", type(build).__qualname__)
    factory, _, inner = name.partition(".<locals>.")
    known = getattr(build, "__module__", "") == "sbi.neural_nets.factory" and factory in FACTORIES
    if not known or not isinstance(build, FunctionType):
        raise UndescribableError(f"{name} is not made by a factory of sbi.neural_nets")
    cells = {
        name: _plain(cell.cell_contents, name)
        for name, cell in zip(build.__code__.co_freevars, build.__closure__ or (), strict=True)
    }
    return {"factory": factory, "inner": inner, "closure": cells}


def _builder(description: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the builder that was described."""
    if "partial" in description:
        keywords = {name: _value(value) for name, value in description["keywords"].items()}
        return partial(
            _builder(description["partial"]), *map(_value, description["args"]), **keywords
        )
    from sbi.neural_nets import factory

    if description["factory"] not in FACTORIES:
        raise CheckpointError(f"sbi has no factory {description['factory']!r} of networks.")
    closure = {name: _value(value) for name, value in description["closure"].items()}
    # Any function of the right kind will do: what it closes over is replaced right after.
    by_name = {
        "model": "mdn_snpe_a" if description["inner"] == "build_fn_snpe_a" else closure.get("model")
    }
    made = getattr(factory, description["factory"])(
        **{name: value for name, value in by_name.items() if value is not None}
    )
    cells = dict(zip(made.__code__.co_freevars, made.__closure__ or (), strict=True))
    if made.__name__ != description["inner"] or cells.keys() != closure.keys():
        raise CheckpointError(
            f"This version of sbi builds {description['factory']} networks in another way than the "
            "one that trained the run. Pass build=, or install the version named in run.json."
        )
    for name, value in closure.items():
        cells[name].cell_contents = value
    return made


def _plain(value: Any, name: str) -> Any:
    """Return what a builder holds as JSON can hold it; values that are not plain get a tag."""
    from sbi.neural_nets.factory import ZukoFlowType

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
    if isinstance(value, ZukoFlowType):
        return {"zuko": value.name}
    if type(value) is nn.Identity:
        return {"identity": True}
    raise UndescribableError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")


def _value(plain: Any) -> Any:
    """Return what `_plain` was given."""
    from sbi.neural_nets.factory import ZukoFlowType

    if not isinstance(plain, dict):
        return plain
    if "mapping" in plain:
        return {key: _value(item) for key, item in plain["mapping"].items()}
    if "list" in plain or "tuple" in plain:
        return list(map(_value, plain["list"])) if "list" in plain else _as_tuple(plain["tuple"])
    if "tensor" in plain:
        return torch.tensor(plain["tensor"], dtype=_dtype(plain["dtype"]))
    if "dtype" in plain:
        return _dtype(plain["dtype"])
    return ZukoFlowType[plain["zuko"]] if "zuko" in plain else nn.Identity()


def _as_tuple(items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(_value, items))


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"run.json names {name!r} as a dtype, which torch does not know.")
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
    whole = (batch == batch.floor()).all(dim=0).nonzero().reshape(-1).tolist()
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
