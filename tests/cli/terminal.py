"""Run the commands in processes of their own: in a pipe, and in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

from tests.small import python, python_path

INSTALLED = "import sys; from sbi_ignite.__main__ import installed_command as c; sys.exit(c())"
"""What the installed script `sbi-ignite` does."""

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?(\x07|\x1b\\)")


def piped(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `sbi-ignite` with its output in a pipe."""
    return python("-c", INSTALLED, *arguments, **{"COLUMNS": "40", **variables})


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
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SBI_IGNITE", "PYTEST_"))}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "CI", "FORCE_COLOR"):
        keep.pop(name, None)
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), "TERM": "xterm-256color"}
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", INSTALLED, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**keep, **own, **variables},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
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
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(master)
    return Shown(raw.decode(errors="replace"), code)
