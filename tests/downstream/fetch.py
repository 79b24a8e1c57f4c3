"""Fetch the tests of the installed version of sbi from its source distribution.

sbi's wheel has no tests. They come from PyPI through pip, or from `SBI_SDIST`, which names a copy:
the archive or the folder that it unpacks to.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

NEEDED = ("tests", "pyproject.toml")
"""What the tests need; sbi's source stays behind, so that they import the installed sbi."""


def fetch(into: Path) -> None:
    """Put sbi's tests and their settings into a folder.

    Args:
        into: an empty folder.

    Raises:
        FileNotFoundError: if there is no source distribution where one was expected.
    """
    version = importlib.metadata.version("sbi")
    source = Path(os.environ["SBI_SDIST"]) if os.environ.get("SBI_SDIST") else download(version)
    if source.is_dir():
        _copy(source, into)
        return
    unpacked = into / "sdist"
    with tarfile.open(source) as archive:
        # `extractall(filter=)` is as young as Python 3.10.12 and 3.11.4; this does for all.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(unpacked)
    _copy(unpacked / f"sbi-{version}", into)
    shutil.rmtree(unpacked)


def _copy(source: Path, into: Path) -> None:
    """Copy what the tests need out of an unpacked source distribution."""
    for name in NEEDED:
        path = source / name
        if not path.exists():
            raise FileNotFoundError(f"{source} is no source distribution of sbi: no {name} in it")
        (shutil.copytree if path.is_dir() else shutil.copy)(path, into / name)


def download(version: str) -> Path:
    """Return the archive of a version, from the cache of an earlier call or from PyPI."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "sbi-ignite" / "sdist"
    archive = folder / f"sbi-{version}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        wanted = ["--no-binary", "sbi", "--dest", str(folder), f"sbi=={version}"]
        subprocess.run([*pip, *wanted], check=True)
    if not archive.exists():
        raise FileNotFoundError(f"pip has not left {archive}")
    return archive
