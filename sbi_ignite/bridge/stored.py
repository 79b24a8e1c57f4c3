"""Append simulations in files to sbi's trainers, without reading them into memory."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_ignite.bridge.lines import check_sbi, private, trainers_without_training
from sbi_ignite.bridge.network_builder import holding
from sbi_ignite.data.simulations import Simulations, open_simulations
from sbi_ignite.data.statistics import FEW_BYTES, FEW_ROWS
from sbi_ignite.data.table import MASKS, StoredPart, Table, Transform, apply_transform
from sbi_ignite.exceptions import ArgumentError, DataError

_PRIOR_ROWS = 100_000
"""Parameters that stand for the prior of a trainer without one."""

_FOUND = re.compile(r"Found \d+ NaN simulations and \d+ Inf simulations")


def append_simulations_from(
    trainer: Any,
    dataset: Any,
    proposal: Any = None,
    exclude_invalid_x: bool | None = None,
    from_round: int | None = None,
    transform: Transform | None = None,
) -> Any:
    """Append simulations in files to a trainer; see `IgniteTrainer.append_simulations_from`."""
    check_sbi()
    name = type(trainer).__name__
    if isinstance(trainer, trainers_without_training()):
        raise ArgumentError(
            f"{name}.append_simulations_from(): this method keeps all simulations as the context "
            "of a network, in memory. Pass some of them to append_simulations()."
        )
    if not isinstance(dataset, Simulations):
        if not isinstance(dataset, str | tuple | list) and not hasattr(dataset, "__fspath__"):
            raise ArgumentError(
                f"dataset: expected simulations by open_simulations(), got "
                f"{type(dataset).__name__}. Tensors go to append_simulations(theta, x)."
            )
        dataset = open_simulations(dataset)
    if transform is not None and not callable(transform):
        raise ArgumentError(
            f"transform: expected a function (theta, x) -> (theta, x), got {transform!r}."
        )
    asked = {
        "proposal": proposal,
        "exclude_invalid_x": exclude_invalid_x,
        "from_round": from_round,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    scan = _scanned(dataset)
    if private(trainer).appends_samples:
        return _append_samples(trainer, dataset, scan, asked, transform)
    return _append(trainer, dataset, scan, asked, transform)


@dataclass(frozen=True)
class _Scan:
    """What a pass over all rows has found.

    Attributes:
        valid: Numbers of rows without NaN and Inf in x; None if all are.
        nans: How many rows have NaN.
        infs: How many rows have Inf.
        theta: Parameters of some valid rows, at most `_PRIOR_ROWS`.
        few: theta and x of fewer valid rows.
        invalid: theta and x of a row with NaN and of one with Inf, where there are such rows.
    """

    valid: NDArray[np.int64] | None
    nans: int
    infs: int
    theta: Tensor
    few: tuple[Tensor, Tensor]
    invalid: tuple[Tensor, Tensor]


class _Sample:
    """Evenly spaced rows, kept while all rows are gone through.

    They lie in one block of memory. Kept one by one between large pieces that come and go, they
    would leave gaps too small for the next piece, and memory would grow with the file.
    """

    def __init__(self, dataset: Simulations, count: int, fields: tuple[str, ...]) -> None:
        self._dataset, self._fields = dataset, fields
        self._rows = np.unique(np.linspace(0, dataset.num_rows - 1, count).astype(np.int64))
        shapes = {"theta": dataset.theta_shape, "x": dataset.x_shape}
        self._held = tuple(torch.empty(len(self._rows), *shapes[field]) for field in fields)

    def take(self, start: int, tensors: tuple[Tensor, ...]) -> None:
        """Keep rows of a piece that begins at row number `start`."""
        begin, end = np.searchsorted(self._rows, (start, start + len(tensors[0])))
        at = torch.from_numpy(self._rows[begin:end] - start)
        for held, tensor in zip(self._held, tensors, strict=True):
            torch.index_select(tensor, 0, at, out=held[begin:end])

    def valid(self, finite: NDArray[np.bool_]) -> tuple[Tensor, ...]:
        """Return the kept rows that are valid, or the first valid ones where fewer than two are."""
        kept = finite[self._rows]
        if kept.sum() < 2:
            return self._dataset.read(np.flatnonzero(finite)[:2], self._fields)
        return tuple(held[torch.from_numpy(kept)] for held in self._held)


def _scanned(dataset: Simulations) -> _Scan:
    few_rows = max(2, min(FEW_ROWS, FEW_BYTES // max(1, dataset.row_bytes), dataset.num_rows))
    few = _Sample(dataset, few_rows, ("theta", "x"))
    many = _Sample(dataset, min(_PRIOR_ROWS, dataset.num_rows), ("theta",))
    finite = np.zeros(dataset.num_rows, dtype=bool)
    bad: dict[str, tuple[Tensor, Tensor]] = {}
    counts = {"nan": 0, "inf": 0}
    for start, (theta, x) in dataset.pieces():
        flat = x.reshape(len(x), -1)
        # Smallest and largest of a row are NaN where one number is.
        lowest, highest = flat.aminmax(dim=1)
        good = lowest.isfinite() & highest.isfinite()
        finite[start : start + len(x)] = good.numpy()
        if not good.all():
            for kind, found in (("nan", flat.isnan()), ("inf", flat.isinf())):
                rows = found.any(dim=1).nonzero().reshape(-1)
                counts[kind] += len(rows)
                if len(rows) and kind not in bad:
                    bad[kind] = theta[rows[:1]], x[rows[:1]]
        few.take(start, (theta, x))
        many.take(start, (theta,))
    if not finite.any():
        raise DataError(
            f"{dataset.name}: expected simulations, all {dataset.num_rows} rows have NaN or Inf "
            "in x."
        )
    nothing = torch.empty(0, *dataset.theta_shape), torch.empty(0, *dataset.x_shape)
    (parameters,) = many.valid(finite)
    theta, x = few.valid(finite)
    return _Scan(
        valid=None if finite.all() else np.flatnonzero(finite),
        nans=counts["nan"],
        infs=counts["inf"],
        theta=parameters,
        few=(theta, x),
        invalid=_joined([nothing, *bad.values()]),
    )


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    theta, x = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return theta, x


def _append(
    trainer: Any,
    dataset: Simulations,
    scan: _Scan,
    asked: dict[str, Any],
    transform: Transform | None,
) -> Any:
    """Let the trainer's own `append_simulations` see a few rows; then put all in their place.

    So its own checks, warnings and counts of rounds hold, and whatever a user has overridden.
    """
    name = type(trainer).__name__
    takes = inspect.signature(type(trainer).append_simulations).parameters
    for argument in asked:
        if argument not in takes:
            raise ArgumentError(
                f"{name}.append_simulations_from() has no {argument}, because "
                f"{name}.append_simulations() has none; it takes "
                f"{', '.join(n for n in takes if n not in ('self', 'theta', 'x'))}."
            )
    if "data_device" in takes:
        asked["data_device"] = "cpu"
    theta, x = _joined([scan.few, scan.invalid])
    own = private(trainer)
    masks = torch.ones(len(scan.theta), 1, dtype=torch.bool)
    with (
        _true_counts(scan, dataset.name),
        # A trainer without a prior makes one of all parameters.
        holding(trainer, get_simulations=lambda starting_round=0: (scan.theta, scan.few[1], masks)),
    ):
        trainer.append_simulations(theta, x, **asked)
    excluded = own.num_appended_last < len(theta)
    part = StoredPart(
        dataset,
        valid=scan.valid if excluded else None,
        from_prior=own.appended_from_prior,
        transform=_checked(transform, scan),
    )
    table = Table([part], ("theta", "x", MASKS))
    own.replace_appended([table.column(field) for field in table.fields])
    return trainer


def _append_samples(
    trainer: Any,
    dataset: Simulations,
    scan: _Scan,
    asked: dict[str, Any],
    transform: Transform | None,
) -> Any:
    unknown = [name for name in asked if name != "exclude_invalid_x"]
    if unknown or transform is not None:
        raise ArgumentError(
            f"{type(trainer).__name__}.append_simulations_from() has no "
            f"{unknown[0] if unknown else 'transform'}; it takes exclude_invalid_x."
        )
    excluded = asked.get("exclude_invalid_x", False)
    part = StoredPart(dataset, valid=scan.valid if excluded else None)
    return trainer.append_samples(Table([part], ("x",)).column("x"))


def _checked(transform: Transform | None, scan: _Scan) -> Transform | None:
    """Try a transform on two rows, with the random states put back, before hours of training."""
    if transform is not None:
        with torch.random.fork_rng(devices=[]):
            apply_transform(transform, scan.few[0][:2].clone(), scan.few[1][:2].clone())
    return transform


@contextmanager
def _true_counts(scan: _Scan, name: str) -> Iterator[None]:
    """Let sbi's messages about invalid rows tell how many there are in the file."""
    counts = f"{name}: Found {scan.nans} NaN simulations and {scan.infs} Inf simulations"

    def corrected(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = _FOUND.sub(lambda _: counts, record.msg)
        return True

    logger = logging.getLogger()
    logger.addFilter(corrected)
    try:
        yield
    except ValueError as error:
        if _FOUND.search(str(error)):
            raise DataError(_FOUND.sub(lambda _: counts, str(error))) from error
        raise
    finally:
        logger.removeFilter(corrected)
