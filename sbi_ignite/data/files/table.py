"""The table of file layouts: names, the pages that open them, and how a path tells which it is."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sbi_ignite.data.files.base import Source, existing
from sbi_ignite.data.files.sharded import ShardedSource
from sbi_ignite.exceptions import ArgumentError, DataError

FORMATS: Mapping[str, str] = {
    "hdf5": "hdf5.open_hdf5",
    "lampe": "hdf5.open_hdf5",
    "swyft": "swyft.open_swyft",
    "npy": "npy.open_npy_pair",
    "npz": "npy.open_npz",
    "arrow": "arrow.open_arrow",
    "dingo": "dingo.open_dingo",
}
"""Pages and functions by the name of the format."""

_SUFFIXES = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npz": "npz",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".zarr": "swyft",
}


def open_source(path: Any, theta: Any = None, x: Any = None, format: str | None = None) -> Source:
    """Open simulations where a path, a pair, a list or a pattern says.

    Args:
        path: A file or folder; `(theta.npy, x.npy)`; a list of files; or a pattern with `*`.
        theta: Name of theta inside.
        x: Name of x inside, or a function that makes it.
        format: Name of the format; None lets the path tell.

    Raises:
        ArgumentError: If the format is unknown or the path tells none.
        DataError: If the files are not there, or not what they should be.
    """
    if isinstance(path, tuple) and len(path) == 2 and _is_npy_pair(path):
        pairs = _matched_pair(path)
        opened = [_open_one(pair, theta, x, "npy") for pair in pairs]
        return opened[0] if len(opened) == 1 else ShardedSource(" + ".join(map(str, path)), opened)
    paths = _paths(path)
    if paths is None:
        return _open_one(path, theta, x, format)
    name = str(path) if isinstance(path, str | os.PathLike) else f"{len(paths)} files"
    sources: list[Source] = []
    try:
        for one in paths:
            sources.append(_open_one(one, theta, x, format))
        return ShardedSource(name, sources)
    except BaseException:
        for source in sources:
            source.close()
        raise


def _is_npy_pair(path: tuple[Any, ...]) -> bool:
    return all(str(part).endswith(".npy") for part in path)


def _matched_pair(path: tuple[Any, ...]) -> list[tuple[str, str]]:
    if not any(map(_is_pattern, path)):
        return [(str(path[0]), str(path[1]))]
    found = [sorted(glob.glob(str(part))) for part in path]
    if not found[0] or len(found[0]) != len(found[1]):
        raise DataError(
            f"{path[0]} + {path[1]}: expected as many files of theta as of x, found "
            f"{len(found[0])} and {len(found[1])}."
        )
    return list(zip(*found, strict=True))


def _is_pattern(path: Any) -> bool:
    return any(c in str(path) for c in "*?[") and not Path(str(path)).exists()


def _paths(path: Any) -> Sequence[Any] | None:
    """Return the files of a pattern or a list; None for a single one."""
    if isinstance(path, str | os.PathLike):
        if not _is_pattern(path):
            return None
        found = sorted(glob.glob(str(path)))
        if not found:
            raise DataError(f"{path}: expected files that match this pattern, there are none.")
        return found
    if isinstance(path, Sequence):
        if not path:
            raise ArgumentError("path: expected at least one file, got an empty list.")
        return sorted(path, key=str)
    raise ArgumentError(
        "path: expected a file, (theta.npy, x.npy), a list of files or a pattern such as "
        f"'sims-*.h5', got {type(path).__name__}."
    )


def _open_one(path: Any, theta: Any, x: Any, format: str | None) -> Source:
    name = _detected(path) if format is None else format
    if name not in FORMATS:
        raise ArgumentError(
            f"format: expected one of {', '.join(FORMATS)}, got {name!r}."
            + (" Convert it once, see convert_simulations()." if name == "bayesflow" else "")
        )
    page, function = FORMATS[name].split(".")
    module = importlib.import_module(f"sbi_ignite.data.files.{page}")
    opener: Callable[..., Source] = getattr(module, function)
    return opener(path, theta, x)


def _detected(path: Any) -> str:
    found = existing(path)
    if found.suffix in _SUFFIXES:
        return _SUFFIXES[found.suffix]
    if found.is_dir():
        if any((found / name).exists() for name in (".zgroup", "zarr.json", ".zattrs")):
            return "swyft"
        if (found / "theta.npy").exists():
            return "npy"
        if any(found.glob("*.pkl")):
            raise DataError(
                f"{path}: pickled simulations (BayesFlow's) are converted once: "
                f"convert_simulations({str(path)!r}, 'simulations.h5', format='bayesflow', "
                "theta=..., x=..., allow_pickle=True)."
            )
    if found.suffix == ".npy":
        raise ArgumentError(
            f"path: expected a pair (theta.npy, x.npy), got {path} alone: an .npy file holds one "
            "array."
        )
    raise ArgumentError(
        f"path: {path} does not tell its format. Say which it is: format= one of "
        f"{', '.join(FORMATS)}."
    )
