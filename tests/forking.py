"""Run programs in processes forked from one that has imported torch, sbi and this package.

A start costs milliseconds instead of the seconds that these imports take. A program gets what
`python` would give it: arguments, `__main__`, `sys.path[0]`, environment, folder and output, and it
is a process of its own, which can be killed. Only its imports have happened already; tests of what
happens at a start or at an import take `tests.small.python`, as some of every kind do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

# Only the standard library is imported here: the server imports the rest without warnings.

PATIENCE = 200
"""Seconds that a program may take, unless a test says otherwise."""


class Program:
    """A program that runs, with the attributes of `subprocess.Popen` that tests use.

    Attributes:
        pid: Its process id.
        stdout: Its output, a text stream; None where it goes elsewhere.
        stderr: Its errors, likewise.
        returncode: Its exit code, negative for the signal that ended it; None while it runs.
    """

    def __init__(
        self, connection: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self._connection, self._answers = connection, connection.makefile("r")
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"program {self.pid}", timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Read the output up to the end and wait for it."""
        told = {"stdout": "", "stderr": ""}

        def read(name: str, stream: IO[str]) -> None:
            with stream:
                told[name] = stream.read()

        streams = {name: getattr(self, name) for name in told}
        threads = [
            threading.Thread(target=read, args=item, daemon=True)
            for item in streams.items()
            if item[1] is not None
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + timeout
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return told["stdout"], told["stderr"]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def start(
    *arguments: str,
    cwd: Path | None = None,
    quiet: bool = False,
    log: Path | None = None,
    terminal: int | None = None,
    **variables: str | None,
) -> Program:
    """Start a program.

    Args:
        *arguments: The command line after `python`.
        cwd: Its folder; None takes the current one.
        quiet: Throw its output away.
        log: A file for its output and errors.
        terminal: A terminal for its input and output, which becomes its own; None makes pipes.
        **variables: Environment variables, beside those of `tests.small.environment`.
    """
    from tests.small import environment

    ends: list[int] = []
    if terminal is not None:
        given, read = [terminal] * 3, None
    else:
        null = os.open(os.devnull, os.O_RDWR)
        ends.append(null)
        given, read = [null] * 3, None
        if log is not None:
            ends.append(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            given = [null, ends[-1], ends[-1]]
        elif not quiet:
            pipes = os.pipe(), os.pipe()
            given = [null, pipes[0][1], pipes[1][1]]
            ends += given[1:]
            read = [os.fdopen(pipe[0], "r") for pipe in pipes]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_server())
    asked = {
        "arguments": arguments,
        "cwd": str(cwd or Path.cwd()),
        "environment": environment(**variables),
        "session": terminal is not None,
    }
    socket.send_fds(connection, [b"."], given)
    connection.sendall(json.dumps(asked).encode())
    connection.shutdown(socket.SHUT_WR)
    for end in ends:
        os.close(end)
    return Program(connection, *(read or (None, None)))


def run(
    *arguments: str, cwd: Path | None = None, timeout: float = PATIENCE, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; see `start`."""
    program = start(*arguments, cwd=cwd, **variables)
    stdout, stderr = program.communicate(timeout)
    return subprocess.CompletedProcess(arguments, program.wait(), stdout, stderr)


@functools.cache
def _server() -> str:
    """Start the server, once per process that runs tests, and return its socket."""
    from tests.small import environment

    folder = tempfile.mkdtemp()
    path = f"{folder}/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forking", path],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C ends it by its pipe alone
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    server.stdout.close()

    def end() -> None:
        server.stdin.close()  # type: ignore[union-attr] # a pipe
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return path


# --- in the server


def _serve(path: str) -> dict[str, Any]:
    """Fork a process for every request, in which this returns with what to run."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    os.write(1, b"ready\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which reaps those that wait for programs
    while True:
        if sys.stdin in select.select([sys.stdin, listening], [], [])[0]:
            os._exit(0)  # whoever asked has ended
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return _fork_program(connection)
        connection.close()


def _fork_program(connection: socket.socket) -> dict[str, Any]:
    """Fork the program and tell how it ends; return in the program."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if program == 0:
        connection.close()
        return {**asked, "descriptors": descriptors}
    for descriptor in (0, 1, 2, *descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    connection.sendall(f"{program}\n".encode())
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(OSError):  # nobody may be there any more
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _prepare(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    session: bool,
    descriptors: list[int],
) -> tuple[str, str]:
    """Become what `python` would be for this command line; return how it names what it runs."""
    import warnings

    import numpy as np

    if session:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(descriptors[0], termios.TIOCSCTTY, 0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in {*descriptors} - {0, 1, 2}:
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(  # noqa: SIM115 # closed by python at its end
            number, mode, buffering=1 if number == 2 or os.isatty(number) else -1, closefd=False
        )
        for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    np.random.seed()  # numpy does so when it is imported
    sys.orig_argv = [sys.executable, *arguments]
    while arguments[0] == "-W":
        warnings.simplefilter(arguments[1])  # type: ignore[arg-type] # an action
        arguments = arguments[2:]
    kind, what, *rest = arguments if arguments[0] in ("-c", "-m") else ["", *arguments]
    sys.argv = [kind or what, *rest]
    first = {"-c": "", "-m": cwd}.get(kind, str(Path(what).resolve().parent))
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *paths, *(path for path in sys.path[1:] if path not in paths)]
    return kind, what


if __name__ == "__main__":
    import gc
    import runpy
    from types import ModuleType

    import tests.preload  # noqa: F401

    gc.collect()
    gc.freeze()
    _kind, _what = _prepare(**_serve(sys.argv[1]))
    # The program runs out here, so that python ends it as it ends every other.
    if _kind == "-m":
        runpy.run_module(_what, run_name="__main__", alter_sys=True)
    elif _kind == "-c":
        _main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(_what, "<string>", "exec"), _main.__dict__)
    else:
        runpy.run_path(_what, run_name="__main__")
