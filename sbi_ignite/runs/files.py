"""Write files that are either complete or absent, and read them back.

JSON is strict: NaN is written as null, and the infinities as the texts "Infinity" and "-Infinity".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

FORMAT = "sbi_ignite run"
VERSION = 3
"""Version of everything in a run directory; readers refuse all others."""

Chunk = bytes | memoryview

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk, or of a user's share of it, that is full."""


class DamagedError(Exception):
    """A file does not hold what was once written to it."""


class UnknownVersionError(Exception):
    """A file is whole, but of a format that this version of sbi_ignite does not know."""


# --- writing, never leaving half a file


def write_whole(path: Path, chunks: Iterable[Chunk], durable_name: bool = True) -> None:
    """Write a file so that at every instant either the old or the new one exists.

    Args:
        path: The file.
        chunks: Its content, piece by piece.
        durable_name: Whether to wait until the folder is on the disk too; False where another file
            follows that waits.

    Raises:
        OSError: If it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable_name:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renamed files survive a power cut, on systems where folders can be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers have left behind."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


# --- files of tensors: one line of JSON, then what torch.save wrote


@dataclass(frozen=True)
class Header:
    """The first line of a file of tensors, readable with `head -1`.

    Attributes:
        kind: "checkpoint" or "best".
        run: Identity of the run that wrote it.
        epoch: Finished epochs, or the best epoch.
        iteration: Finished optimizer steps; 0 in best weights.
        best: Digest of the best weights that belong to a checkpoint; None without any.
        meta: Plain data of the writer.
    """

    kind: str
    run: str
    epoch: int
    iteration: int = 0
    best: str | None = None
    meta: Mapping[str, Any] | None = None


def encode_tensors(header: Header, content: Mapping[str, Any]) -> tuple[str, list[Chunk]]:
    """Return digest and bytes of a file of tensors.

    Args:
        header: What it is.
        content: Tensors and plain data, as `torch.load(weights_only=True)` accepts them.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    payload = buffer.getbuffer()
    fields = {"format": FORMAT, "version": VERSION, **asdict(header)}
    digest = _digest(fields, payload)
    line = json.dumps({**fields, "digest": digest}, allow_nan=False)
    return digest, [line.encode() + b"\n", payload]


def read_tensors(path: Path) -> tuple[Header, str, Any]:
    """Return header, digest and content of a file, after verifying its checksum.

    Raises:
        DamagedError: If the file is not what was written.
        UnknownVersionError: If it is whole, but of another format version.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error
    head = bytes(data[:65536]).partition(b"\n")[0]
    fields = _parse_header(head)
    digest, payload = fields.pop("digest"), data[len(head) + 1 :]
    if digest != _digest(fields, payload):
        raise DamagedError("its checksum is wrong")
    if fields["version"] != VERSION:
        raise UnknownVersionError(unknown_version(fields["version"]))
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DamagedError("torch.load(weights_only=True) refuses its content") from error
    return _header(fields), digest, content


def read_header(path: Path) -> tuple[Header, str]:
    """Return header and digest of a file without verifying the rest.

    Raises:
        DamagedError: If there is no header.
    """
    try:
        with path.open("rb") as file:
            fields = _parse_header(file.readline(65536).rstrip(b"\n"))
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error
    digest = fields.pop("digest")
    return _header(fields), digest


def unknown_version(version: object) -> str:
    """Explain a format version that this package does not know."""
    return (
        f"it has format version {version}, and this sbi_ignite reads version {VERSION} only. "
        "Continue with the sbi_ignite that wrote it, or start in another directory"
    )


def _parse_header(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DamagedError("it is empty" if not line else "its first line is broken") from error
    wanted = {"format", "version", "digest"}
    if not isinstance(fields, dict) or not wanted <= fields.keys() or fields["format"] != FORMAT:
        raise DamagedError("its first line is not that of a file of sbi_ignite")
    return fields


def _header(fields: Mapping[str, Any]) -> Header:
    own = {name: value for name, value in fields.items() if name not in ("format", "version")}
    try:
        return Header(**own)
    except TypeError as error:
        raise DamagedError("its first line lacks something") from error


def _digest(fields: Mapping[str, Any], payload: Chunk) -> str:
    digest = hashlib.sha256(_canonical(fields))
    digest.update(payload)
    return digest.hexdigest()[:32]


# --- files for people: JSON with a checksum


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain data as pretty, strict JSON that carries its own checksum.

    Raises:
        OSError: If it cannot be written; the old file is untouched.
    """
    value = strict({**value, "format_version": VERSION})
    checked = {**value, "checksum": checksum(_canonical(value))}
    text = json.dumps(checked, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, [text.encode() + b"\n"])


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote, None if there is no file.

    Raises:
        DamagedError: If the file is not what was written.
        UnknownVersionError: If it is of another format version.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedError("it is not JSON") from error
    if not isinstance(value, dict):
        raise DamagedError("it is not a JSON object")
    found = value.pop("checksum", None)
    if found != checksum(_canonical(value)):
        raise DamagedError("its checksum is wrong")
    if value.get("format_version") != VERSION:
        raise UnknownVersionError(unknown_version(value.get("format_version")))
    return value


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of strict JSON."""
    return json.dumps(strict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def strict(value: Any) -> Any:
    """Return plain data without NaN (null) and infinities (texts); other objects as their text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    return value.item() if hasattr(value, "item") else str(value)


def _not_finite(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "Infinity" if value > 0 else "-Infinity"


def checksum(data: bytes) -> str:
    """Return a short digest of bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
