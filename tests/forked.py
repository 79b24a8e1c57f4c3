"""Scripts in processes of their own that start in half a second instead of eight.

A server imports torch, ignite and everything else that sbi and sbi_ignite import, but neither of
these two, and forks a process for each script: they are imported anew in it, as after any start.
Whatever is about the start of the interpreter itself belongs into a real one: see `small.python`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = ("sbi", "sbi_ignite", "tests")
"""Packages that every script imports by itself."""


def variables_of_a_script(**more: str) -> dict[str, str]:
    """Return this environment with this tree importable, one thread and without our settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBI_IGNITE", "PYTEST_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), **more}


class ForkedProcess:
    """A process of the server's.

    Args:
        process: Its id.
        status: The end of a pipe from which its exit status comes.
    """

    def __init__(self, process: int, status: int) -> None:
        self.pid, self._status = process, open(status)  # noqa: SIM115 # closed with the status
        self.returncode: int | None = None

    def wait(self, timeout: float = 200.0) -> int:
        """Return the exit status, negative after a signal."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired("a forked script", timeout)
            with self._status as file:
                self.returncode = int(file.readline())
        return self.returncode

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Server:
    """The client's side of the server."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=variables_of_a_script(),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self.close)

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
    ) -> ForkedProcess:
        """Start `python *arguments` in a folder, with standard input, output and error."""
        request = {"arguments": [*arguments], "environment": {**environment}, "folder": str(folder)}
        status, theirs = os.pipe()
        with tempfile.TemporaryFile("w+") as text:
            json.dump(request, text)
            text.seek(0)
            socket.send_fds(self._socket, [b"start"], [text.fileno(), *streams, theirs])
        os.close(theirs)
        return ForkedProcess(int(self._socket.recv(100)), status)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)


_server: Server | None = None


def start(
    *arguments: str,
    folder: Path | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int = 2,
    **variables: str,
) -> ForkedProcess:
    """Start python with arguments, by default in the current folder and without an output."""
    global _server
    if _server is None:
        _server = Server()
    environment = variables_of_a_script(**variables)
    with open(os.devnull, "r+b") as nothing:
        silent = nothing.fileno()
        streams = [silent if stdin is None else stdin, silent if stdout is None else stdout, stderr]
        return _server.start(arguments, environment, folder or Path.cwd(), streams)


def python(
    *arguments: str, folder: Path | None = None, timeout: float = 200.0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run python with arguments (`-m module`, `-c text` or a path) in a process of its own."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        files = {"stdout": out.fileno(), "stderr": error.fileno()}
        code = start(*arguments, folder=folder, **files, **variables).wait(timeout)
        texts = [(file.seek(0), file.read())[1] for file in (out, error)]
    return subprocess.CompletedProcess(["python", *arguments], code, *texts)


# --- the server's process


def import_everything_else() -> None:
    """Import what sbi and sbi_ignite import."""
    with contextlib.redirect_stderr(io.StringIO()):  # warnings of theirs
        import ignite.engine
        import ignite.handlers  # noqa: F401
        import matplotlib.pyplot  # noqa: F401
        import pydantic_settings  # noqa: F401
        import sbi.inference  # noqa: F401
        import torch.utils.tensorboard.summary  # noqa: F401

    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # else every process looks through all of it at its end, which takes seconds


def become(request: dict[str, Any]) -> None:
    """Make this process what `python *arguments` is after its start."""
    import numpy

    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)
    numpy.random.seed()
    sys.path[:] = [path for path in sys.path[1:] if path != str(ROOT)]
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.modules.pop("sitecustomize", None)
    site.execsitecustomize()


def run(arguments: list[str]) -> None:
    """Run a script as python does."""
    while arguments[0] == "-W":
        sys.warnoptions.append(arguments[1])
        warnings.simplefilter(arguments[1])  # pyright: ignore[reportArgumentType]
        arguments = arguments[2:]
    kind = arguments[0]
    if kind == "-m":
        sys.argv[:] = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        home = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), home.__dict__)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


def serve(connection: socket.socket) -> list[str]:
    """Fork a process for every request; returns in these, with the arguments of the script."""
    while True:
        _, sent, _, _ = socket.recv_fds(connection, 100, 5)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        if not sent:
            sys.exit()
        watcher = os.fork()
        if watcher == 0:
            return watch(connection, *sent)
        for descriptor in sent:
            os.close(descriptor)


def watch(connection: socket.socket, text: int, *files: int) -> list[str]:
    """Fork the process itself, and wait for its end."""
    *streams, status = files
    child = os.fork()
    if child == 0:
        os.close(status)
        connection.close()
        with open(text) as file:
            request = json.loads(file.read())
        for target, descriptor in enumerate(streams):
            os.dup2(descriptor, target)
            os.close(descriptor)
        become(request)
        return request["arguments"]
    for descriptor in (*streams, 0, 1, 2):
        os.close(descriptor)
    connection.send(str(child).encode())
    connection.close()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(status, f"{code}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    import_everything_else()
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
