"""Convert simulations once: files that no row can be read from, and pickles."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.npy import stream_npz
from sbi_ignite.data.simulations import Simulations, open_simulations
from sbi_ignite.data.writer import SimulationWriter
from sbi_ignite.exceptions import ArgumentError, DataError, SbiIgniteWarning

_ROWS = 1_024


def convert_simulations(
    source: Any,
    path: str | os.PathLike[str],
    *,
    theta: Any = None,
    x: Any = None,
    format: str | None = None,
    allow_pickle: bool = False,
) -> Simulations:
    """Write simulations of any layout to a file of our own, a piece at a time.

    Everything that `open_simulations` opens, an `.npz` that is compressed, and BayesFlow's
    folders of pickles (`format="bayesflow"`), one dictionary per simulation and file.

    Args:
        source: What to convert: `Simulations`, or what `open_simulations` takes.
        path: The file to write; there must be none.
        theta: Name of theta in the source; for pickles also a list of names, which are joined.
        x: Name of x in the source, likewise.
        format: Name of the format; None lets the path tell.
        allow_pickle: Allow to read pickles. A pickle can run any code when it is read: do so only
            with files that you trust.

    Returns:
        The new file, opened.

    Raises:
        DataError: If the path exists already or the source is not what it should be.
        ArgumentError: If pickles are to be read without `allow_pickle`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> np.savez_compressed(folder + "/s.npz", theta=np.zeros((9, 2)), x=np.ones((9, 3)))
        >>> len(convert_simulations(folder + "/s.npz", folder + "/s.h5"))
        9
    """
    if Path(path).exists():
        raise DataError(f"{path}: expected a new file, it exists. Remove it or take another name.")
    partial = Path(f"{path}.partial")
    partial.unlink(missing_ok=True)
    with SimulationWriter(partial, source=f"converted from {source}") as writer:
        for pair in _pieces(source, theta, x, format, allow_pickle):
            writer.append(*pair)
        if not writer.num_rows:
            raise DataError(f"{source}: expected simulations, there are none.")
    os.replace(partial, path)
    return open_simulations(path)


def _pieces(
    source: Any, theta: Any, x: Any, format: str | None, allow_pickle: bool
) -> Iterator[tuple[Any, Any]]:
    if format == "bayesflow":
        yield from _unpickled(source, theta, x, allow_pickle)
        return
    if not isinstance(source, Simulations) and str(source).endswith(".npz"):
        pair = (
            stream_npz(source, field, asked or field, _ROWS)
            for field, asked in (("theta", theta), ("x", x))
        )
        yield from zip(*pair, strict=True)
        return
    opened = (
        source
        if isinstance(source, Simulations)
        else open_simulations(source, theta=theta, x=x, format=format)
    )
    for _, piece in opened.pieces():
        yield piece[0], piece[1]


def _unpickled(
    source: Any, theta: Any, x: Any, allow_pickle: bool
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield simulations from a folder of pickles, one dictionary each."""
    if not allow_pickle:
        raise ArgumentError(
            f"{source}: reading pickles can run any code that somebody put into them. Pass "
            "allow_pickle=True if you trust their origin."
        )
    if theta is None or x is None:
        raise ArgumentError(
            "theta, x: expected the names under which the dictionaries hold them, or lists of "
            "names, such as theta='parameters', x='observables'."
        )
    warnings.warn(
        f"{source}: pickles are read, which can run any code that somebody put into them.",
        SbiIgniteWarning,
        stacklevel=4,
    )
    folder = Path(str(source))
    files = sorted(map(str, folder.glob("*.pkl"))) if folder.is_dir() else sorted(glob(str(source)))
    if not files:
        raise DataError(f"{source}: expected files *.pkl, there are none.")
    for file in files:
        with open(file, "rb") as stream:
            try:
                simulation = pickle.load(stream)  # the user has said that it may
            except (pickle.UnpicklingError, EOFError) as error:
                raise DataError(f"{file}: expected a pickle, got {error}") from error
        if not isinstance(simulation, Mapping):
            raise DataError(
                f"{file}: expected a dictionary with a simulation, got {type(simulation).__name__}."
            )
        yield _row(simulation, theta, file), _row(simulation, x, file)


def _row(simulation: Mapping[str, Any], names: Any, file: str) -> NDArray[Any]:
    several: Sequence[str] = [names] if isinstance(names, str) else list(names)
    missing = [name for name in several if name not in simulation]
    if missing:
        raise DataError(
            f"{file}: expected {missing[0]!r}, found {', '.join(map(repr, simulation))}."
        )
    values = [np.asarray(simulation[name]) for name in several]
    if isinstance(names, str):
        return np.atleast_1d(values[0])[None]
    return np.concatenate([value.reshape(-1) for value in values])[None]
