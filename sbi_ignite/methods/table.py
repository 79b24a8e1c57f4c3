"""The table of methods: which of sbi's trainers has which page.

Importing it loads no page, so that the public names of the package can follow from it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sbi_ignite.methods.base import Method


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        page: Module in `methods/`.
        method: Name of the `Method` in it.
        loss_args: Name of its loss arguments, which is public.
    """

    page: str
    method: str
    loss_args: str


_VECTOR_FIELD = Row("vector_field", "VECTOR_FIELD", "LossArgsVF")

TRAINERS: dict[str, Row] = {
    "NPE_A": Row("npe", "NPE", "LossArgsNPE"),
    "NPE_B": Row("npe", "NPE", "LossArgsNPE"),
    "NPE_C": Row("npe", "NPE_ATOMIC", "LossArgsNPE"),
    "MNPE": Row("npe", "NPE_ATOMIC", "LossArgsNPE"),
    "NLE_A": Row("nle", "NLE", "LossArgsNLE"),
    "MNLE": Row("nle", "NLE", "LossArgsNLE"),
    "NRE_A": Row("nre", "NRE_A", "LossArgsNRE_A"),
    "NRE_B": Row("nre", "NRE_B", "LossArgsNRE"),
    "NRE_C": Row("nre", "NRE_C", "LossArgsNRE_C"),
    "BNRE": Row("nre", "BNRE", "LossArgsBNRE"),
    "FMPE": _VECTOR_FIELD,
    "NPSE": _VECTOR_FIELD,
    "MarginalTrainer": Row("marginal", "MARGINAL", "LossArgsMarginal"),
}
"""The trainers in `sbi.inference` that train something."""

BASES: dict[str, Row] = {
    "PosteriorEstimatorTrainer": Row("npe", "NPE", "LossArgsNPE"),
    "LikelihoodEstimatorTrainer": Row("nle", "NLE", "LossArgsNLE"),
    "RatioEstimatorTrainer": Row("nre", "NRE_B", "LossArgsNRE"),
    "VectorFieldTrainer": _VECTOR_FIELD,
}
"""Their abstract bases, for trainers that users derive from these."""

LOSS_ARGS: dict[str, str] = {
    "LossArgs": "base",
    **{row.loss_args: row.page for row in (*TRAINERS.values(), *BASES.values())},
}
"""The public loss arguments, and the page of each."""


def method_of(cls: type) -> Method:
    """Return the method of a class of trainers; for an unknown kind, one that takes `LossArgs`.

    Args:
        cls: One of sbi's trainers, or a class derived from one.

    Example:
        >>> from sbi.inference import NLE
        >>> method_of(NLE).loss_args.__name__
        'LossArgsNLE'
    """
    from sbi_ignite.methods.base import LossArgs, Method

    known = known_class(cls)
    if known is None:
        return Method(LossArgs, lambda trainer: None)
    return _method(_row(known))


def page_of(cls: type) -> str | None:
    """Return the name of the page of a class of trainers; None for an unknown kind.

    Example:
        >>> from sbi.inference import FMPE
        >>> page_of(FMPE)
        'vector_field'
    """
    known = known_class(cls)
    return None if known is None else _row(known).page


def known_class(cls: type) -> type | None:
    """Return the closest ancestor, or the class itself, that the table has; None without one.

    It goes by the names of classes, so that it holds for every release of sbi.
    """
    ancestors = (c for c in cls.__mro__ if c.__module__.partition(".")[0] == "sbi")
    return next((c for c in ancestors if c.__name__ in TRAINERS or c.__name__ in BASES), None)


def loss_keywords() -> tuple[str, ...]:
    """Return sbi's keywords that loss arguments stand for."""
    fields: dict[str, None] = {}
    for name, page in LOSS_ARGS.items():
        if name != "LossArgs":
            fields |= dict.fromkeys(_attribute(page, name).model_fields)
    common = _attribute("base", "LossArgs").model_fields
    return tuple(name for name in fields if name not in common)


def _row(known: type) -> Row:
    return TRAINERS.get(known.__name__) or BASES[known.__name__]


def _method(row: Row) -> Method:
    return _attribute(row.page, row.method)


def _attribute(page: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sbi_ignite.methods.{page}"), name)
