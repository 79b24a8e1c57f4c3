"""Run the commands in processes of their own: in a pipe, and in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from dataclasses import dataclass

from tests import forking

INSTALLED = "import sys; from sbi_ignite.__main__ import installed_command as c; sys.exit(c())"
"""What the installed script `sbi-ignite` does."""

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?(\x07|\x1b\\)")


def piped(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `sbi-ignite` with its output in a pipe."""
    return forking.run("-c", INSTALLED, *arguments, **{"COLUMNS": "40", **variables})


@dataclass
class Shown:
    """What a terminal was sent.

    Attributes:
        raw: All of it.
        code: The exit code.
    """

    raw: str
    code: int

    @property
    def text(self) -> str:
        """The text without colours and movements of the cursor."""
        return ANSI.sub("", self.raw).replace("\r", "")


def in_terminal(
    *arguments: str,
    columns: int = 100,
    interrupt_when: str | None = None,
    seconds: float = 120,
    **variables: str,
) -> Shown:
    """Run `sbi-ignite` in a pseudo-terminal of its own.

    Args:
        *arguments: The command line.
        columns: Width of the terminal.
        interrupt_when: Text that, once shown, makes the user press Ctrl-C.
        seconds: How long it may take.
        **variables: Environment variables.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    own = dict.fromkeys(("NO_COLOR", "COLUMNS", "LINES", "CI", "FORCE_COLOR"))
    process = forking.start(
        "-c",
        INSTALLED,
        *arguments,
        terminal=slave,
        **{**own, "TERM": "xterm-256color", **variables},
    )
    os.close(slave)
    raw, until = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            if not select.select([master], [], [], 0.2)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                raw += os.read(master, 65536)
            except OSError:  # Linux says so when the other side has closed
                break
            if interrupt_when and interrupt_when in raw.decode(errors="replace"):
                os.write(master, b"\x03")  # as a keyboard does
                interrupt_when = None
        code = process.wait(max(until - time.monotonic(), 1))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
    return Shown(raw.decode(errors="replace"), code)
