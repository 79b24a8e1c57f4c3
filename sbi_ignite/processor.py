"""Read what the system says about the processor."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def about_processor(*names: str) -> str:
    """Return the first entry of `/proc/cpuinfo` with one of these names.

    Args:
        *names: Names of the same thing on different processors, such as "flags" and "Features".

    Returns:
        Its text; the kind of processor on systems without such an entry.

    Example:
        >>> about_processor("no such entry") == (platform.processor() or platform.machine())
        True
    """
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return platform.processor() or platform.machine()
